"""What a SLURM site asks for: account, partition, limits, modules, container. One file, `launch/slurm/site.yaml`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from flowrl.base.config_file import read_config
from flowrl.base.config_tree import ConfigError, require

_SLACK_S = 120  # before its grace begins, a job should get somewhere


@dataclass
class ContainerSection:
    """The image in which flowrl is installed, where it is not on the nodes themselves."""

    kind: Literal["none", "apptainer", "pyxis"] = "none"
    image: str = ""  # a .sif file, or what pyxis takes: a .sqsh file or the name of an image in a registry
    mounts: list[str] = field(default_factory=list)  # beside the checkout, /tmp and /dev/shm: paths, or from:to


@dataclass
class Site:
    """The settings of a site; those that are empty are left to SLURM."""

    account: str = ""
    partition: str = ""
    qos: str = ""
    constraint: str = ""
    gpus_per_node: int = 8
    gpu_type: str = ""  # such as h100
    cpus_per_gpu: int = 8
    memory: str = ""  # of a node, such as 500G
    time_limit: str = "24:00:00"
    grace_s: int = 900  # before the limit, in seconds: a step, an evaluation and a checkpoint must fit
    throttle: int = 0  # runs at a time; 0: no limit
    max_restarts: int = 100  # of one run
    report_partition: str = ""  # of the job that writes the report, which needs no GPU; empty: partition
    mail_user: str = ""
    options: list[str] = field(default_factory=list)  # further ones of sbatch, such as --exclusive
    setup: list[str] = field(default_factory=list)  # lines of bash before each job, such as module load apptainer
    container: ContainerSection = field(default_factory=ContainerSection)


def read_site(path: Path) -> Site:
    """The settings of a file; raises ConfigError."""
    return read_config(Site, path, [], check=_check)


def seconds_of(limit: str) -> int:
    """A time limit, [D-]HH:MM:SS, in seconds; raises ConfigError."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)", limit)
    if found is None:
        raise ConfigError(f"time_limit must read HH:MM:SS or D-HH:MM:SS, got {limit!r}")
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _check(site: Site) -> None:
    for one in fields(site):
        value = vars(site)[one.name]
        word = not isinstance(value, str) or re.fullmatch(r"[^\s\"'$`\\#]*", value) is not None
        require(word, f"{one.name} must be one word without quotes, $ and #, got {value!r}")
    for key in ("gpus_per_node", "cpus_per_gpu", "grace_s"):
        require(vars(site)[key] >= 1, f"{key} must be at least 1, got {vars(site)[key]}")
    for key in ("throttle", "max_restarts"):
        require(vars(site)[key] >= 0, f"{key} must be at least 0, got {vars(site)[key]}")
    limit = seconds_of(site.time_limit)
    require(
        site.grace_s + _SLACK_S <= limit,
        f"grace_s = {site.grace_s} leaves no time for training within time_limit = {site.time_limit}: it must be "
        f"{_SLACK_S} s shorter",
    )
    for option in site.options:
        rule = "must begin with --, as options of sbatch do, and be one line"
        require(re.fullmatch(r"--[^\n$]+", option) is not None, f"options: {option!r} {rule}")
    container = site.container
    require(
        (container.kind == "none") == (container.image == ""),
        f"container.kind {container.kind} with container.image {container.image!r}: an image needs a kind, apptainer "
        "or pyxis, and a kind an image",
    )
    for text in (container.image, *container.mounts):
        require(re.search(r"[\s\"'$`\\,]", text) is None, f"container: {text!r} must have no spaces, commas or quotes")
