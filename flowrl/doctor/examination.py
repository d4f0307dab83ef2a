"""The whole examination, in the order in which one thing depends on another.

What needs packages is imported where it is used, so that an installation that is broken is examined too.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from flowrl.base.embedded import POCKET
from flowrl.doctor.collect import collect
from flowrl.doctor.finding import Entry, Finding, examine, fine, guarded, tried
from flowrl.doctor.gpu_checks import gpu_checks
from flowrl.doctor.host_checks import host_checks
from flowrl.doctor.machine import Machine
from flowrl.doctor.purpose import purpose_of
from flowrl.doctor.software_checks import software_checks
from flowrl.doctor.versions import VersionReport

if TYPE_CHECKING:
    from flowrl.config import RunConfig

Collect = Callable[[Mapping[str, Path]], Machine]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to examine.

    Example: ``Request(config=load("configs/pocket/ditreward.yaml"), run="configs/pocket/ditreward.yaml")``
    """

    config: RunConfig | None = None
    run: str = "CONFIG"  # the file of the configuration and overrides, as given; for advice
    hosts: tuple[str, ...] = ()  # other nodes, by name
    address: str = ""  # of a Ray cluster; empty: that of the configuration, if any
    step: bool = True  # whether to train a step
    collect: Collect = field(default=collect, repr=False)

    @property
    def cluster(self) -> str:
        """The address of the Ray cluster to examine; empty where there is none."""
        named = "" if self.config is None else self.config.placement.ray_address
        return self.address or ("" if named == "local" else named)


def examination(request: Request) -> Iterator[Entry]:
    """Every finding as it is made, in groups: where one group cannot go on, the others do."""
    config = request.config

    def snapshot() -> Machine:
        return request.collect(_disks(config))

    host, machine = tried("Machine", "host", snapshot, _name_of)
    yield host
    if machine is None:  # then there is nothing to go on with
        return
    purpose = purpose_of(config, machine)
    *software, imports = software_checks(machine)
    yield from examine([*host_checks(machine, purpose), *gpu_checks(machine, purpose), *software])
    imported = imports.made()
    yield imported
    reports = yield from guarded(_nodes(request, machine))
    if imported.finding.verdict == "problem":
        return
    if config is not None:
        yield from guarded(_files(config, request.run))
        yield from guarded(_fit(config, machine, reports or []))
    if request.step:
        can = machine.torch is not None and machine.torch.usable_gpus > 0
        yield from guarded(_trial("cuda" if can and purpose.gpus else "cpu"))


def _name_of(machine: Machine) -> Finding:
    return fine(machine.host + (", in a container" if machine.in_container else ""))


def _nodes(request: Request, machine: Machine) -> Generator[Entry, None, list[VersionReport]]:
    """The findings on other nodes, where any are named; returns the reports of all nodes of the run, if there are."""
    if not request.hosts and not request.cluster:
        return []
    from flowrl.doctor.node_checks import cluster_checks, node_checks
    from flowrl.fetch.needs import named_paths

    named = [] if request.config is None else named_paths(request.config)
    paths = [str(path.absolute()) for path in named]
    reports: list[VersionReport] = []
    if request.hosts:
        reports = yield from node_checks(machine, request.hosts, paths)
    if request.cluster:  # whose nodes then are those of the run
        reports = yield from cluster_checks(machine, request.cluster, paths)
    return reports


def _files(config: RunConfig, run: str) -> Generator[Entry, None, None]:
    """The findings on the run's files, which need the libraries."""
    from flowrl.doctor.run_checks import file_checks

    yield from file_checks(config, run)


def _fit(config: RunConfig, machine: Machine, reports: Sequence[VersionReport]) -> Generator[Entry, None, None]:
    """The findings on the run's needs, on this machine or on all nodes whose reports there are."""
    from flowrl.doctor.run_checks import fit_checks

    usable = machine.torch.usable_gpus if machine.torch is not None else 0
    yield from fit_checks(config, machine, sum(len(report.gpus) for report in reports) if reports else usable)


def _trial(device: Literal["cpu", "cuda"]) -> Generator[Entry, None, None]:
    """The step of training."""
    from flowrl.doctor.trial import trial_check

    yield trial_check(device).made()


def _disks(config: RunConfig | None) -> dict[str, Path]:
    """The folders that are written to, each by the key that sets it, or by what it is for where none does.

    Those of the policy and of rewards are among them while their weights are yet to come.
    """
    home = Path.home()
    disks = {
        "run.dir": Path("runs" if config is None else config.run.dir),
        "cache": Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")),
        "temporary": Path(tempfile.gettempdir()),
    }
    if config is None:
        return disks
    if config.data.condition_cache:
        disks["data.condition_cache"] = Path(config.data.condition_cache)
    weights = {"model.path": config.model.path}
    for part, specs in {"train": config.rewards.train, "watch": config.rewards.watch}.items():
        for index, spec in enumerate(specs):
            weights[f"rewards.{part}.{index}.options.path"] = spec.options.get("path", POCKET)
    to_come = {key: Path(path) for key, path in weights.items() if path != POCKET and not Path(path).exists()}
    return disks | to_come
