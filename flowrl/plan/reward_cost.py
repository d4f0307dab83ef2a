"""What a reward takes, measured on its own network without weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

from flowrl.config import ConfigError, RewardSpec
from flowrl.plan.meter import Meter, materialise
from flowrl.plan.repeated_blocks import repeat_blocks
from flowrl.reward_loading import hollow
from flowrl.types import HollowReward, SampleShapes


@dataclass(frozen=True, kw_only=True)
class RewardCost:
    """Bytes and FLOPs of scoring, of one reward in one process."""

    name: str  # what metrics call it
    samples: int  # in one call
    spread_bytes: int  # weights that a gang of scorers divides
    whole_bytes: int  # weights and buffers that each scorer has
    spread_parameters: int
    rise: int  # bytes above the weights, of one call
    flops: int  # of one sample

    @property
    def weight_bytes(self) -> int:
        """Of a scorer that is alone."""
        return self.spread_bytes + self.whole_bytes


def reward_cost(spec: RewardSpec, shapes: SampleShapes, device: str) -> RewardCost | None:
    """The cost of the reward that a configuration names, or None when its class has no `hollow`.

    Raises ConfigError when it cannot score such samples, and what its `hollow` raises, such as the CheckpointError of a
    damaged file.
    """
    shown = hollow(spec, shapes, device)
    if shown is None:
        return None
    try:
        return measure_reward(spec.metric_name, shown)
    except (RuntimeError, ValueError) as error:  # of torch or diffusers, where shapes do not go together
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"rewards: {spec.metric_name} cannot score what the run makes, latents {list(shapes.latents)} and texts "
            f"{list(shapes.text)}: {reason}; use a reward of this policy's latents and text encoders"
        ) from error


def measure_reward(name: str, shown: HollowReward) -> RewardCost:
    """The cost of a reward that shows its network; the network gets tensors without numbers."""
    mode, meter = FakeTensorMode(allow_non_fake_inputs=True), Meter()
    spread = whole = parameters = rise = flops = 0
    for call in shown.calls:
        mine = sum(parameter.nbytes for parameter in call.module.parameters())
        buffers = sum(buffer.nbytes for buffer in call.module.buffers())
        spread += mine if call.spread else 0
        whole += buffers + (0 if call.spread else mine)
        parameters += sum(parameter.numel() for parameter in call.module.parameters()) if call.spread else 0
        call.module.eval().requires_grad_(False)
        with meter:
            materialise(call.module, mode)
        inputs = tree_map(lambda leaf: _fake(leaf, mode), call.inputs)
        with meter.stretch() as work, torch.no_grad(), repeat_blocks(call.module, meter):
            call.run(*inputs)
        rise, flops = max(rise, work.rise), flops + call.times * work.flops
    return RewardCost(
        name=name,
        samples=shown.samples,
        spread_bytes=spread,
        whole_bytes=whole + shown.other_bytes,
        spread_parameters=parameters,
        rise=rise,
        flops=flops // shown.samples,
    )


def _fake(leaf: object, mode: FakeTensorMode) -> object:
    """A tensor on the meta device as one on the CPU without numbers; anything else as it is."""
    if not isinstance(leaf, torch.Tensor) or not leaf.is_meta:
        return leaf
    with mode:
        return torch.empty(leaf.shape, dtype=leaf.dtype)
