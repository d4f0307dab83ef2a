"""The bytes that a step moves from actor to actor."""

from __future__ import annotations

from dataclasses import dataclass

from flowrl.plan.costs import Costs
from flowrl.plan.memory import DeviceMemory
from flowrl.plan.roles import is_spread

_FLOAT32 = 4


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """What is moved in a step, in bytes over all actors."""

    name: str
    size: int


def transfers_of(costs: Costs, devices: tuple[DeviceMemory, ...]) -> tuple[Transfer, ...]:
    """Everything that is worth a line. Of collectives what each rank receives, summed over the ranks."""
    config, work, policy = costs.config, costs.work, costs.policy
    turns = sum(2 * role.leaves * kind.devices for kind in devices if kind.in_turn for role in kind.roles)
    waiting = (Transfer(name="weights of roles in turn, off GPUs and on", size=turns),) if turns else ()
    if config.placement.mode == "local":
        return waiting
    trajectories = trajectory_bytes(costs)
    found = [
        Transfer(name="trajectories, to scorers", size=trajectories),
        Transfer(name="trajectories, to learners", size=trajectories),
        Transfer(name="text conditions, to rollouts", size=2 * work.groups * costs.condition_bytes),
        Transfer(name="adapter, to rollouts", size=policy.adapter_bytes * work.rollouts),
    ]
    ranks, strategy = work.learners, config.placement.learner_strategy
    if ranks > 1:
        times = work.inner_steps if strategy in ("ddp", "fsdp2") else work.losses // ranks
        found.append(Transfer(name="gradients, over learners", size=2 * (ranks - 1) * policy.adapter_bytes * times))
    if ranks > 1 and strategy in ("fsdp2", "zero3"):
        passes = 2 + (config.algorithm.kl_beta > 0)  # forward, backward, the reference's forward
        cut = policy.weight_bytes - policy.buffer_bytes
        gathered = (ranks - 1) * cut * passes * (work.losses // ranks)
        found.append(Transfer(name=f"frozen weights by {strategy}, over learners", size=gathered))
    for reward in costs.trained:
        if reward.cost is not None and is_spread(config, reward.cost) and work.scorers > 1:
            calls = -(-config.rollout.group_size // reward.cost.samples) * -(-work.groups // work.scorers)
            size = (work.scorers - 1) * reward.cost.spread_bytes * calls
            found.append(Transfer(name=f"weights of {reward.name}, over scorers", size=size))
    return (*found, *waiting)


def trajectory_bytes(costs: Costs) -> int:
    """Those of all groups: final and stored latents in float32, and the two text conditions once."""
    channels, height, width = costs.geometry.latent_shape
    latents = costs.config.rollout.group_size * channels * height * width * _FLOAT32
    stored = costs.work.trained_steps + 1
    return costs.work.groups * (latents * (1 + stored) + 2 * costs.condition_bytes)
