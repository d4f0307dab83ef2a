"""What an array job asks SLURM for: the GPUs of a run, which `flowrl.seating` counts, as nodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from flowrl.config import PlacementSection, RunConfig
from flowrl.seating import seating
from flowrl.slurm.site import Site


@dataclass(frozen=True, kw_only=True)
class Job:
    """The array job of an experiment; each element has the same resources.

    Example: two arms with three seeds on nodes of 8 GPUs, of which each run takes 16:
    ``Job(indices=(0, 1, 2, 3, 4, 5), nodes=2, gpus_per_node=8, cpus_per_node=64)``
    """

    indices: tuple[int, ...]  # of the lines of the manifest that are not finished
    nodes: int
    gpus_per_node: int  # 0: none
    cpus_per_node: int


def job_for(configs: Sequence[RunConfig], indices: Sequence[int], site: Site) -> Job:
    """The job that has room for the largest of the configurations."""
    placements = [config.placement for config in configs]
    devices = max(len(seating(one).shares) for one in placements)
    if all(one.device == "cpu" for one in placements):
        cpus = max(_processes(one) * one.threads for one in placements)
        return Job(indices=tuple(indices), nodes=1, gpus_per_node=0, cpus_per_node=cpus)
    nodes = math.ceil(devices / site.gpus_per_node)
    gpus = math.ceil(devices / nodes)
    return Job(indices=tuple(indices), nodes=nodes, gpus_per_node=gpus, cpus_per_node=gpus * site.cpus_per_gpu)


def array_of(indices: Sequence[int], throttle: int) -> str:
    """As `sbatch --array` takes them. Example: 0, 1, 2 and 5, two at a time: "0-2,5%2"."""
    breaks = [0, *(at for at, (one, other) in enumerate(pairwise(indices), 1) if other != one + 1), len(indices)]
    runs = [(indices[start], indices[end - 1]) for start, end in pairwise(breaks)]
    text = ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return f"{text}%{throttle}" if throttle else text


def _processes(placement: PlacementSection) -> int:
    return 1 if placement.mode == "local" else 1 + sum(seating(placement).shares)
