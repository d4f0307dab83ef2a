"""What could be changed in a run that does not fit, and how much each change is to ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from flowrl.config import RunConfig

_AHEAD = 8  # steps whose prompts are encoded together
_CACHE = "data/conditions"


@dataclass(frozen=True, kw_only=True)
class Change:
    """Keys of one section that are set together, and how much that is to ask for."""

    keys: frozenset[str]
    overrides: tuple[str, ...]  # "key=value", as they follow a configuration on the command line
    weight: int
    apply: Callable[[RunConfig], RunConfig]


def changes_of(config: RunConfig, num_gpus: int | None) -> list[Change]:
    """What could be changed, the rules of a configuration apart.

    `num_gpus` are those there are; with None as many as the run takes.
    """
    placement = config.placement
    found = [] if num_gpus is None else _placements(config, num_gpus)
    if not config.model.gradient_checkpointing:
        found.append(_set("model", {"gradient_checkpointing": True}, weight=2))
    if config.data.encode_ahead == 0:
        cache = config.data.condition_cache or _CACHE
        found.append(_set("data", {"encode_ahead": _AHEAD, "condition_cache": cache}, weight=1))
    if not placement.offload:
        found.append(_set("placement", {"offload": True}, weight=3))
        if placement.shard_scorer:  # what is spread over scorers stays, so that there may be no room for the others
            found.append(_set("placement", {"offload": True, "shard_scorer": False}, weight=4))
    for bits, weight in (("int8", 4), ("int4", 5)):
        if config.model.quantisation == "none":
            found.append(_set("model", {"quantisation": bits}, weight=weight))
    if placement.shard_scorer and placement.mode in ("split", "fused") and num_gpus is None:
        found.append(_set("placement", {"num_scorers": 2 * placement.num_scorers}, weight=3))
    if placement.mode == "split" and not placement.learners_cut_weights:
        found.append(_set("placement", {"learner_strategy": "fsdp2"}, weight=3))
        found.append(_set("placement", {"learner_strategy": "zero3"}, weight=4))
    return found


def _placements(config: RunConfig, num_gpus: int) -> list[Change]:
    """Placements on fewer GPUs: those of a configuration whose groups do not divide over them are left out later."""
    if num_gpus == 1:
        return [_set("placement", {"mode": "local"}, weight=6)]
    parts = config.rollout.prompts_per_step // config.algorithm.inner_steps
    learners = max((n for n in range(1, num_gpus + 1) if parts % n == 0), default=1)
    shared = {"mode": "colocated", "num_rollouts": 0, "num_learners": learners, "num_scorers": learners}
    apart = max((n for n in range(1, num_gpus) if parts % n == 0), default=1)
    own = {"mode": "fused", "num_learners": apart, "num_scorers": num_gpus - apart}
    return [_set("placement", own, weight=6), _set("placement", shared, weight=7)]


def _set(section: str, values: Mapping[str, object], *, weight: int) -> Change:
    """Set these keys of a section."""

    def apply(config: RunConfig) -> RunConfig:
        changed: RunConfig = replace(config, **{section: replace(vars(config)[section], **values)})
        return changed

    said = {key: str(value).lower() if isinstance(value, bool) else value for key, value in values.items()}
    return Change(
        keys=frozenset(f"{section}.{key}" for key in values),
        overrides=tuple(f"{section}.{key}={value}" for key, value in said.items()),
        weight=weight,
        apply=apply,
    )
