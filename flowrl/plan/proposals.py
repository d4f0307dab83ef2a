"""What to change where a run does not fit on its GPUs, and what more would fit where it does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations

from flowrl.config import ConfigError, RunConfig
from flowrl.config_rules import check
from flowrl.plan.changes import Change, changes_of
from flowrl.plan.costs import costs_of
from flowrl.plan.gpus import GPUS, Gpu
from flowrl.plan.memory import DeviceMemory, room
from flowrl.plan.run_plan import RunPlan, device_memory, run_plan

_MOST = 3  # proposals, beside that of a larger GPU
_AT_ONCE = 3  # changes in a proposal, beside fewer samples in a forward


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Changes that make a run fit; or a larger GPU, on which it fits as it is.

    Example: ``Proposal(overrides=("model.gradient_checkpointing=true",))``
    """

    overrides: tuple[str, ...] = ()  # as they follow a configuration on the command line
    gpu: Gpu | None = None
    plan: RunPlan | None = None  # of the run with the changes

    @property
    def text(self) -> str:
        """The overrides, or the GPU in words."""
        if self.gpu is None:
            return " ".join(self.overrides)
        return f"a GPU with {self.gpu.memory // 10**9} GB, such as {self.gpu.title}"


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A proposal of changes, and how far they reach."""

    keys: frozenset[str]  # of the changes
    samples: int  # in a forward
    proposal: Proposal


def too_large(plan: RunPlan, gpu: Gpu) -> list[DeviceMemory]:
    """The kinds of devices whose roles do not fit on such a GPU."""
    return [kind for kind in plan.devices if kind.peak > room(gpu)]


def proposals(config: RunConfig, gpu: Gpu, num_gpus: int | None = None) -> list[Proposal]:
    """What would make a run fit that does not, the least change first, each planned; empty when nothing is known.

    `num_gpus` are those there are; with None as many as the run takes.
    """
    found: list[_Found] = []
    for changes in _combinations(changes_of(config, num_gpus)) if _least_bytes(config) <= room(gpu) else ():
        changed, keys = _changed(config, changes), frozenset(key for change in changes for key in change.keys)
        # Only with more samples than fewer changes allow: else some of these are for nothing.
        least = max((other.samples for other in found if other.keys <= keys), default=0)
        if changed is not None and (samples := _samples_that_fit(changed, gpu, num_gpus, least)):
            overrides = [override for change in changes for override in change.overrides]
            overrides += [] if samples == config.rollout.forward_size else [f"rollout.samples_per_forward={samples}"]
            proposal = Proposal(overrides=tuple(overrides), plan=run_plan(_with_samples(changed, samples)))
            found.append(_Found(keys=keys, samples=samples, proposal=proposal))
        if len(found) == _MOST:
            break
    larger = [] if num_gpus is not None and run_plan(config).gpus > num_gpus else _larger(config, gpu)
    return [one.proposal for one in found] + larger


def room_for_more(config: RunConfig, gpu: Gpu) -> int:
    """The largest number of samples in a forward that fits, at least that of the configuration."""
    group = config.rollout.group_size
    sizes = [size for size in range(group, config.rollout.forward_size, -1) if group % size == 0]
    return next((size for size in sizes if _fits(_with_samples(config, size), gpu, None)), config.rollout.forward_size)


def _combinations(changes: list[Change]) -> Iterator[tuple[Change, ...]]:
    """No change, then some that go together, the least that is asked for first."""
    sets = [few for count in range(_AT_ONCE + 1) for few in combinations(changes, count)]
    for few in sorted(sets, key=lambda few: sum(change.weight for change in few)):
        keys = [key for change in few for key in change.keys]
        if len(keys) == len(set(keys)):
            yield few


def _changed(config: RunConfig, changes: tuple[Change, ...]) -> RunConfig | None:
    """The configuration with the changes, or None when they break a rule."""
    for change in changes:
        config = change.apply(config)
    try:
        check(config)
    except ConfigError:
        return None
    return config


def _samples_that_fit(config: RunConfig, gpu: Gpu, num_gpus: int | None, least: int) -> int:
    """The largest number of samples in a forward with which all roles fit, above `least` and up to that of the
    configuration, or 0."""
    group = config.rollout.group_size
    sizes = [size for size in range(config.rollout.forward_size, least, -1) if group % size == 0]
    if not sizes or not _could_fit(_with_samples(config, sizes[-1]), gpu):
        return 0
    return next((size for size in sizes if _fits(_with_samples(config, size), gpu, num_gpus)), 0)


def _could_fit(config: RunConfig, gpu: Gpu) -> bool:
    """False where it is plain without another measurement that a run does not fit.

    Rounded weights are smaller, and all else is as large as with whole ones.
    """
    if config.model.quantisation == "none":
        return True
    whole = replace(config, model=replace(config.model, quantisation="none"))
    weights = costs_of(whole).policy.weight_bytes
    return device_memory(whole)[0].peak - weights <= room(gpu)


def _least_bytes(config: RunConfig) -> int:
    """Of the policy in 4 bits, cut over the learners: what any change leaves."""
    costs = costs_of(config)
    return costs.policy.num_parameters // 2 // costs.work.learners


def _fits(config: RunConfig, gpu: Gpu, num_gpus: int | None) -> bool:
    devices = device_memory(config)
    wanted = sum(kind.devices for kind in devices)
    return devices[0].peak <= room(gpu) and (num_gpus is None or wanted <= num_gpus)


def _with_samples(config: RunConfig, samples: int) -> RunConfig:
    return replace(config, rollout=replace(config.rollout, samples_per_forward=samples))


def _larger(config: RunConfig, gpu: Gpu) -> list[Proposal]:
    """The least GPU on which the run fits as it is."""
    plan = run_plan(config)
    larger = [other for other in GPUS.values() if other.memory > gpu.memory and not too_large(plan, other)]
    if not larger:
        return []
    return [Proposal(gpu=min(larger, key=lambda other: other.memory))]
