"""What to change where a run does not fit on its GPUs."""

from __future__ import annotations

from dataclasses import replace

from flowrl.config import RunConfig
from flowrl.plan.gpus import GPUS, Gpu
from flowrl.plan.memory import DeviceMemory, room
from flowrl.plan.run_plan import RunPlan, run_plan


def too_large(plan: RunPlan, gpu: Gpu) -> list[DeviceMemory]:
    """The kinds of devices whose roles do not fit on such a GPU."""
    return [kind for kind in plan.devices if kind.peak > room(gpu)]


def proposals(config: RunConfig, gpu: Gpu) -> list[str]:
    """Changes each of which would make a run fit that does not, the least one first; empty when none is known."""
    now = config.model.gradient_checkpointing
    found = []
    for recompute in (False, True) if not now else (True,):
        model = replace(config.model, gradient_checkpointing=recompute)
        size = _most_samples(replace(config, model=model), gpu)
        if size:
            keys = [f"rollout.samples_per_forward={size}"]
            found.append(" ".join([*keys, "model.gradient_checkpointing=true"] if recompute and not now else keys))
    plan = run_plan(config)
    larger = [other for other in GPUS.values() if other.memory > gpu.memory and not too_large(plan, other)]
    if larger:
        least = min(larger, key=lambda other: other.memory)
        found.append(f"a GPU with {least.memory // 10**9} GB, such as {least.title}")
    return found


def _most_samples(config: RunConfig, gpu: Gpu) -> int:
    """The largest number of samples in a forward, up to that of the configuration, with which all roles fit, or 0."""
    group = config.rollout.group_size
    one, two = (_peaks(config, samples) for samples in (1, 2))
    for size in range(config.rollout.samples_per_forward or group, 0, -1):
        # Peaks grow evenly with the samples: each activation has a row for each.
        peaks = [first + (size - 1) * (second - first) for first, second in zip(one, two, strict=True)]
        if group % size == 0 and all(peak <= room(gpu) for peak in peaks):
            return size
    return 0


def _peaks(config: RunConfig, samples: int) -> list[int]:
    rollout = replace(config.rollout, samples_per_forward=samples)
    return [kind.peak for kind in run_plan(replace(config, rollout=rollout)).devices]
