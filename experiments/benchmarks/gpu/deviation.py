"""How far the replay is from the rollout before any update, where both should give the same log-probability.

In bfloat16 the kernels of a GPU may round differently by the shape of the batch, and with gradients than without. A
ratio that is not 1 there is trained on as if it came from the policy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from experiments.benchmarks.gpu import networks
from experiments.benchmarks.gpu.record import Case, Deviation
from experiments.benchmarks.gpu.sampled import algorithm, group
from experiments.benchmarks.gpu.setting import Setting
from experiments.benchmarks.gpu.timing import measure
from flowrl.models.sd3 import SD3Policy
from flowrl.types import LossOutput, TrainBatch, Trajectory

LARGEST_RATIO = "largest |ratio - 1|"
LARGEST_LOG_PROB = "largest |log-prob difference|"
CLIPPED = "share beyond the clip range"


def run(setting: Setting) -> Iterator[Case]:
    """Replays in batches of the rollout's size and of others, as the blocks are and with each block compiled."""
    policy = networks.policy(setting)
    yield from _replays(policy, setting, "eager", setting.sizes.replayed)
    try:
        _compile(policy, setting.sizes.compiler)
        # Each size is compiled anew, with gradients and without: one unequal size must do.
        yield from _replays(policy, setting, "compiled", (setting.sizes.replayed[0], setting.sizes.replayed[-1]))
    except RuntimeError as error:  # no compiler here, or one that cannot do it
        lines = str(error).strip().splitlines()
        yield Case(name="compiled", outcome="failed", reason=lines[0] if lines else type(error).__name__)


def _compile(policy: SD3Policy, backend: str) -> None:
    """Have each block compiled: they are alike but for the last, so there are few graphs and not one for each.

    Where torch would give up and go on eagerly, it raises.
    """
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    for block in policy.transformer.transformer_blocks:
        block.compile(backend=backend, dynamic=False)


def _replays(policy: SD3Policy, setting: Setting, how: str, sizes: tuple[int, ...]) -> Iterator[Case]:
    together = sizes[0]
    sampled: list[Trajectory] = []

    def rollout() -> None:
        sampled.append(group(policy, setting, samples=together, samples_per_forward=together))

    yield measure(f"{how}: sampled by {together}", rollout, setting, images=together, flops=0, repeats=1)
    for size in sizes if sampled else ():
        torch._dynamo.reset()  # graphs of other sizes count towards its limit
        found: list[tuple[Deviation, ...]] = []
        batch = TrainBatch(trajectory=sampled[-1], advantages=torch.ones(together))

        def replay(size: int = size, batch: TrainBatch = batch, found: list[Any] = found) -> None:
            found.append(_deviations(policy, batch, size))

        name = f"{how}: sampled by {together}, replayed by {size}"
        case = measure(name, replay, setting, flops=0, repeats=1)
        yield replace(case, deviations=found[-1] if found else ())


def _deviations(policy: SD3Policy, batch: TrainBatch, size: int) -> tuple[Deviation, ...]:
    """The worst of all samples and trained sampler steps, with gradients as in an update, and the share clipped."""
    trajectory, loss = batch.trajectory, algorithm(with_reference=False).loss
    parts = [slice(at, at + size) for at in range(0, trajectory.num_samples, size)]
    # Of each loss the figures alone are kept: with it the activations of its forward would stay.
    found = [
        _figures(loss(policy, batch, part, step_index)) for part in parts for step_index in trajectory.plan.trained
    ]
    return (
        Deviation(what=LARGEST_RATIO, value=max(values["policy/ratio_absdev_max"] for values in found)),
        Deviation(what=LARGEST_LOG_PROB, value=max(values["policy/logp_absdiff_max"] for values in found)),
        Deviation(what=CLIPPED, value=sum(values["policy/clip_fraction"] for values in found) / len(found)),
    )


def _figures(output: LossOutput) -> dict[str, float]:
    return {metric.key: metric.value for metric in (*output.metrics, *output.drift)}
