"""What to change where a run does not fit on its GPUs, and what more would fit where it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations

from flowrl.config import ConfigError, RunConfig
from flowrl.config_rules import check
from flowrl.plan.costs import costs_of
from flowrl.plan.gpus import GPUS, Gpu
from flowrl.plan.memory import DeviceMemory, room
from flowrl.plan.run_plan import RunPlan, device_memory, run_plan

_MOST = 3  # proposals, beside that of a larger GPU
_AT_ONCE = 3  # changes in a proposal, beside fewer samples in a forward
_AHEAD = 8  # steps whose prompts are encoded together
_CACHE = "data/conditions"


@dataclass(frozen=True, kw_only=True)
class _Change:
    """One thing to set, and how much it is to ask for."""

    values: frozenset[str]  # the keys alone
    keys: str
    weight: int
    apply: Callable[[RunConfig], RunConfig]


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Changes that make a run fit, as they follow a configuration on the command line; or the words for a larger GPU.

    Example: ``Proposal(keys="model.gradient_checkpointing=true")``
    """

    keys: str
    plan: RunPlan | None = None  # of the run with the changes


@dataclass(frozen=True, kw_only=True)
class _Found:
    names: frozenset[str]  # of the keys that change
    samples: int  # in a forward
    proposal: Proposal


def too_large(plan: RunPlan, gpu: Gpu) -> list[DeviceMemory]:
    """The kinds of devices whose roles do not fit on such a GPU."""
    return [kind for kind in plan.devices if kind.peak > room(gpu)]


def proposals(config: RunConfig, gpu: Gpu) -> list[str]:
    """Changes each of which would make a run fit that does not, the least one first; empty when none is known."""
    return [proposal.keys for proposal in find_proposals(config, gpu, None)]


def find_proposals(config: RunConfig, gpu: Gpu, num_gpus: int | None) -> list[Proposal]:
    """What would make a run fit that does not, the least change first, each planned.

    `num_gpus` are those there are; with None as many as the run takes.
    """
    found: list[_Found] = []
    for changes in _combinations(_changes(config, num_gpus)) if _least_bytes(config) <= room(gpu) else ():
        changed, names = _changed(config, changes), frozenset(key for change in changes for key in change.values)
        # Only with more samples than fewer changes allow: else some of these are for nothing.
        least = max((other.samples for other in found if other.names <= names), default=0)
        if changed is not None and (samples := _most_samples(changed, gpu, num_gpus, least)):
            keys = [change.keys for change in changes]
            keys += [] if samples == _samples(config) else [f"rollout.samples_per_forward={samples}"]
            plan = run_plan(_with_samples(changed, samples))
            found.append(_Found(names=names, samples=samples, proposal=Proposal(keys=" ".join(keys), plan=plan)))
        if len(found) == _MOST:
            break
    larger = [] if num_gpus is not None and run_plan(config).gpus > num_gpus else _larger(config, gpu)
    return [one.proposal for one in found] + larger


def most_samples(config: RunConfig, gpu: Gpu) -> int:
    """The largest number of samples in a forward that fits, at least that of the configuration."""
    group = config.rollout.group_size
    sizes = [size for size in range(group, _samples(config), -1) if group % size == 0]
    return next((size for size in sizes if _fits(_with_samples(config, size), gpu, None)), _samples(config))


def _combinations(changes: list[_Change]) -> Iterator[tuple[_Change, ...]]:
    """No change, then some that go together, the least that is asked for first."""
    sets = [few for count in range(_AT_ONCE + 1) for few in combinations(changes, count)]
    for few in sorted(sets, key=lambda few: sum(change.weight for change in few)):
        keys = [key for change in few for key in change.values]
        if len(keys) == len(set(keys)):
            yield few


def _changes(config: RunConfig, num_gpus: int | None) -> list[_Change]:
    """What could be changed, the rules of a configuration apart."""
    placement = config.placement
    found = [] if num_gpus is None else _placements(config, num_gpus)
    if not config.model.gradient_checkpointing:
        found.append(_set("model", {"gradient_checkpointing": True}, weight=2))
    if config.data.encode_ahead == 0:
        cache = config.data.condition_cache or _CACHE
        found.append(_set("data", {"encode_ahead": _AHEAD, "condition_cache": cache}, weight=1))
    if not placement.offload:
        found.append(_set("placement", {"offload": True}, weight=3))
    for bits, weight in (("int8", 4), ("int4", 5)):
        if config.model.quantisation == "none":
            found.append(_set("model", {"quantisation": bits}, weight=weight))
    if placement.shard_scorer and placement.mode in ("split", "fused") and num_gpus is None:
        found.append(_set("placement", {"num_scorers": 2 * placement.num_scorers}, weight=3))
    if placement.mode == "split" and placement.learner_strategy in ("ddp", "zero2"):
        found.append(_set("placement", {"learner_strategy": "fsdp2"}, weight=3))
        found.append(_set("placement", {"learner_strategy": "zero3"}, weight=4))
    return found


def _placements(config: RunConfig, num_gpus: int) -> list[_Change]:
    """Placements on fewer GPUs: those of a configuration whose groups do not divide over them are left out later."""
    if num_gpus == 1:
        return [_set("placement", {"mode": "local"}, weight=6)]
    parts = config.rollout.prompts_per_step // config.algorithm.inner_steps
    learners = max((n for n in range(1, num_gpus + 1) if parts % n == 0), default=1)
    shared = {"mode": "colocated", "num_rollouts": 0, "num_learners": learners, "num_scorers": learners}
    apart = max((n for n in range(1, num_gpus) if parts % n == 0), default=1)
    own = {"mode": "fused", "num_learners": apart, "num_scorers": num_gpus - apart}
    return [_set("placement", own, weight=6), _set("placement", shared, weight=7)]


def _set(section: str, values: Mapping[str, object], *, weight: int) -> _Change:
    """Set these keys of a section."""

    def apply(config: RunConfig) -> RunConfig:
        changed: RunConfig = replace(config, **{section: replace(vars(config)[section], **values)})
        return changed

    said = {key: str(value).lower() if isinstance(value, bool) else value for key, value in values.items()}
    return _Change(
        values=frozenset(f"{section}.{key}" for key in values),
        keys=" ".join(f"{section}.{key}={value}" for key, value in said.items()),
        weight=weight,
        apply=apply,
    )


def _changed(config: RunConfig, changes: tuple[_Change, ...]) -> RunConfig | None:
    """The configuration with the changes, or None when they break a rule."""
    for change in changes:
        config = change.apply(config)
    try:
        check(config)
    except ConfigError:
        return None
    return config


def _most_samples(config: RunConfig, gpu: Gpu, num_gpus: int | None, least: int) -> int:
    """The largest number of samples in a forward with which all roles fit, above `least` and up to that of the
    configuration, or 0."""
    group = config.rollout.group_size
    sizes = [size for size in range(_samples(config), least, -1) if group % size == 0]
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


def _samples(config: RunConfig) -> int:
    return config.rollout.samples_per_forward or config.rollout.group_size


def _with_samples(config: RunConfig, samples: int) -> RunConfig:
    return replace(config, rollout=replace(config.rollout, samples_per_forward=samples))


def _larger(config: RunConfig, gpu: Gpu) -> list[Proposal]:
    """The least GPU on which the run fits as it is."""
    plan = run_plan(config)
    larger = [other for other in GPUS.values() if other.memory > gpu.memory and not too_large(plan, other)]
    if not larger:
        return []
    least = min(larger, key=lambda other: other.memory)
    return [Proposal(keys=f"a GPU with {least.memory // 10**9} GB, such as {least.title}")]
