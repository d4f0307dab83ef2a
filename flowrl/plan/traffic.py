"""The bytes that a step moves from actor to actor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from flowrl.plan.costs import Costs, ScoringCost
from flowrl.plan.memory import DeviceMemory
from flowrl.plan.roles import is_spread

_FLOAT32 = 4


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """What is moved in a step, in bytes over all actors."""

    name: str
    size: int
    phase: Literal["score", "update", "turns", ""] = ""  # whose length may depend on it
    actors: int = 1  # who move it, or devices, each the same part

    @property
    def of_each(self) -> int:
        """Bytes of each that moves it."""
        return self.size // self.actors


def transfers_of(costs: Costs, devices: tuple[DeviceMemory, ...]) -> tuple[Transfer, ...]:
    """Everything that is worth a line. Of collectives what each rank receives, summed over the ranks."""
    waiting = _turns(devices)
    if costs.config.placement.mode == "local":
        return waiting
    work, trajectories = costs.work, trajectory_bytes(costs)
    found = [
        Transfer(name="trajectories, to scorers", size=trajectories),
        Transfer(name="trajectories, to learners", size=trajectories),
        Transfer(name="text conditions, to rollouts", size=2 * work.groups * costs.condition_bytes),
        Transfer(name="adapter, to rollouts", size=costs.policy.adapter_bytes * work.rollouts),
        *_over_learners(costs),
    ]
    if received := gathered_to_score(costs, costs.trained, work.groups):
        names = ", ".join(reward.name for reward in costs.trained)
        found.append(
            Transfer(
                name=f"weights of {names}, over scorers",
                size=received * work.scorers,
                phase="score",
                actors=work.scorers,
            )
        )
    return (*found, *waiting)


def gathered_to_score(costs: Costs, rewards: tuple[ScoringCost, ...], groups: int) -> int:
    """The bytes of rewards' weights that each scorer of a gang receives while groups are scored."""
    config, ranks = costs.config, costs.work.scorers
    rounds = -(-groups // ranks)
    return sum(
        (ranks - 1) * reward.cost.spread_bytes // ranks * -(-config.rollout.group_size // reward.cost.samples) * rounds
        for reward in rewards
        if reward.cost is not None and is_spread(config, reward.cost)
    )


def _over_learners(costs: Costs) -> Iterator[Transfer]:
    work, policy, strategy = costs.work, costs.policy, costs.config.placement.learner_strategy
    ranks = work.learners
    if ranks == 1:
        return
    times = work.inner_steps if strategy in ("ddp", "fsdp2") else work.losses // ranks
    gradients = 2 * (ranks - 1) * policy.adapter_bytes * times
    yield Transfer(name="gradients, over learners", size=gradients, phase="update", actors=ranks)
    if costs.config.placement.learners_cut_weights:
        passes = 2 + (costs.config.algorithm.kl_beta > 0)  # forward, backward, the reference's forward
        cut = policy.weight_bytes - policy.buffer_bytes
        gathered = (ranks - 1) * cut * passes * (work.losses // ranks)
        name = f"frozen weights by {strategy}, over learners"
        yield Transfer(name=name, size=gathered, phase="update", actors=ranks)


def _turns(devices: tuple[DeviceMemory, ...]) -> tuple[Transfer, ...]:
    shared = [kind for kind in devices if kind.in_turn]
    size = sum(2 * role.leaves * kind.devices for kind in shared for role in kind.roles)
    name, count = "weights of roles in turn, off GPUs and on", sum(kind.devices for kind in shared)
    return (Transfer(name=name, size=size, phase="turns", actors=count),) if size else ()


def trajectory_bytes(costs: Costs) -> int:
    """Those of all groups: final and stored latents in float32, and the two text conditions once."""
    channels, height, width = costs.geometry.latent_shape
    latents = costs.config.rollout.group_size * channels * height * width * _FLOAT32
    stored = costs.work.trained_steps + 1
    return costs.work.groups * (latents * (1 + stored) + 2 * costs.condition_bytes)
