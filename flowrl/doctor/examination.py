"""The whole examination, in the order in which one thing depends on another.

What needs packages is imported where it is used, so that an installation that is broken is examined too.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from flowrl.base.embedded import POCKET
from flowrl.doctor.collect import collect
from flowrl.doctor.finding import Check, Entry, Finding, examine, fine
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
    """Every finding as it is made."""
    for part in _parts(request):  # each on its own: where one cannot go on, the others do
        yield from examine(part)


def _parts(request: Request) -> Iterator[Iterable[Check]]:
    """The checks in groups; a group is begun when those before it are done."""
    config = request.config
    seen: list[Machine] = []

    def snapshot() -> Finding:
        machine = request.collect(_disks(config))
        seen.append(machine)
        return fine(machine.host + (", in a container" if machine.in_container else ""))

    yield [Check(subject="Machine", name="host", look=snapshot)]
    for machine in seen:  # none where it failed: then there is nothing to go on with
        purpose = purpose_of(config, machine)
        yield host_checks(machine, purpose)
        yield gpu_checks(machine, purpose)
        loaded: list[Finding] = []
        *software, imports = software_checks(machine)
        yield [*software, _kept(imports, loaded)]
        reports: list[VersionReport] = []
        yield _nodes(request, machine, reports)
        if not loaded or loaded[0].verdict == "problem":
            return
        if config is not None:
            yield _files(config, request.run)
            yield _fit(config, machine, reports)
        if request.step:
            can = machine.torch is not None and machine.torch.usable_gpus > 0
            yield _trial("cuda" if can and purpose.gpus else "cpu")


def _kept(check: Check, into: list[Finding]) -> Check:
    """The check, with its finding kept for those who come after."""

    def look() -> Finding:
        into.append(check.look())
        return into[-1]

    return Check(subject=check.subject, name=check.name, look=look)


def _nodes(request: Request, machine: Machine, reports: list[VersionReport]) -> Iterator[Check]:
    """The checks of other nodes, where any are named; the reports of all nodes of the run are added to `reports`."""
    from flowrl.doctor.node_checks import cluster_checks, node_checks

    paths = _shared_paths(request.config)
    if request.hosts:
        yield from node_checks(machine, request.hosts, paths, [] if request.cluster else reports)
    if request.cluster:
        yield from cluster_checks(machine, request.cluster, paths, reports)


def _files(config: RunConfig, run: str) -> Iterator[Check]:
    """The checks of the run's files, which need the libraries."""
    from flowrl.doctor.run_checks import file_checks

    yield from file_checks(config, run)


def _fit(config: RunConfig, machine: Machine, reports: Sequence[VersionReport]) -> Iterator[Check]:
    """The checks of the run's needs, on this machine or on all nodes whose reports there are."""
    from flowrl.doctor.run_checks import fit_checks

    usable = machine.torch.usable_gpus if machine.torch is not None else 0
    yield from fit_checks(config, machine, sum(len(report.gpus) for report in reports) if reports else usable)


def _trial(device: Literal["cpu", "cuda"]) -> Iterator[Check]:
    """The step of training."""
    from flowrl.doctor.trial import trial_check

    yield trial_check(device)


def _disks(config: RunConfig | None) -> dict[str, Path]:
    """The folders that are written to, by what the checks call them."""
    home = Path.home()
    disks = {
        "runs": Path("runs" if config is None else config.run.dir),
        "cache": Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")),
        "temporary": Path(tempfile.gettempdir()),
    }
    if config is not None and config.data.condition_cache:
        disks["texts"] = Path(config.data.condition_cache)
    return disks


def _shared_paths(config: RunConfig | None) -> list[str]:
    """The files that actors read wherever they are."""
    if config is None:
        return []
    options = [spec.options.get("path", POCKET) for spec in [*config.rewards.train, *config.rewards.watch]]
    named = [config.model.path, *(value for value in options if isinstance(value, str))]
    return [str(Path(value).absolute()) for value in dict.fromkeys(named) if value != POCKET]
