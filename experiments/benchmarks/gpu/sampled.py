"""A group as a run samples it: prompt, order and trajectory."""

from __future__ import annotations

from experiments.benchmarks.gpu import networks
from experiments.benchmarks.gpu.setting import Setting
from flowrl.algorithms.configs import FlowGRPOConfig
from flowrl.algorithms.flow_grpo import FlowGRPO
from flowrl.core.sampler import sample
from flowrl.models.sd3 import SD3Policy
from flowrl.types import Prompt, RolloutRequest, Trajectory


def algorithm(*, with_reference: bool) -> FlowGRPO:
    """Flow-GRPO as published; without the reference no KL is computed."""
    config = FlowGRPOConfig() if with_reference else FlowGRPOConfig(kl_beta=0.0)
    return FlowGRPO(config, seed=0)


def group(policy: SD3Policy, setting: Setting, *, samples: int, samples_per_forward: int, steps: int = 0) -> Trajectory:
    """One group, of `steps` sampler steps instead of the setting's."""
    sizes = setting.sizes
    request = RolloutRequest(
        prompt=Prompt(id=0, text=""),
        seed=0,
        step=1,
        num_samples=samples,
        plan=algorithm(with_reference=True).plan(1, steps or sizes.sampler_steps),
        guidance_scale=sizes.guidance_scale,
    )
    return sample(
        policy,
        request,
        networks.condition(setting, 1),
        networks.condition(setting, 2),
        policy_version=0,
        samples_per_forward=samples_per_forward,
        device=setting.device,
    )
