"""The rollout of one group: all sampler steps with guidance, log-probabilities and stored latents."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from experiments.benchmarks.gpu import case_names, networks
from experiments.benchmarks.gpu.record import Case
from experiments.benchmarks.gpu.sampled import group
from experiments.benchmarks.gpu.setting import Setting
from experiments.benchmarks.gpu.timing import measure


def run(setting: Setting) -> Iterator[Case]:
    """One case for each number of samples in a forward."""
    sizes = setting.sizes
    policy = networks.policy(setting)
    for together in sizes.samples_per_forward:
        sampled = partial(group, policy, setting, samples=sizes.group_size, samples_per_forward=together)
        # Every sampler step takes the same, so one of them warms up and counts for all.
        yield measure(
            case_names.rollout(together),
            sampled,
            setting,
            images=sizes.group_size,
            first=partial(sampled, steps=1),
            times_first=sizes.sampler_steps,
        )
