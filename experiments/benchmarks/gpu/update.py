"""The update on one group: loss with KL and backward pass of a micro-batch, the optimizer's step, and all of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from experiments.benchmarks.gpu import networks
from experiments.benchmarks.gpu.record import Case
from experiments.benchmarks.gpu.sampled import algorithm, group
from experiments.benchmarks.gpu.setting import Setting
from experiments.benchmarks.gpu.sizes import MicroBatch
from experiments.benchmarks.gpu.timing import measure
from flowrl.actors.strategies.whole_adapter import WholeAdapter
from flowrl.algorithms.flow_grpo import FlowGRPO
from flowrl.config import OptimSection
from flowrl.models.sd3 import SD3Policy
from flowrl.types import TrainBatch


@dataclass(frozen=True, kw_only=True)
class _Learning:
    """What a learner holds: the policy, its optimizer's state and the moving average."""

    policy: SD3Policy
    adapter: WholeAdapter
    average: tuple[torch.Tensor, ...]
    batch: TrainBatch
    algorithm: FlowGRPO

    def learn(self, samples: slice, step_index: int) -> None:
        """Add the gradient of a micro-batch at one sampler step."""
        self.algorithm.loss(self.policy, self.batch, samples, step_index).loss.backward()

    def step(self) -> None:
        """Clip, step and average."""
        self.adapter.step()
        for average, value in zip(self.average, self.adapter.adapter().values(), strict=True):
            average.lerp_(value, 0.1)

    def checkpoint(self, on: bool) -> None:
        """Keep few activations from now on, or all."""
        if on:
            self.policy.checkpoint_activations()
        else:
            self.policy.transformer.disable_gradient_checkpointing()


def run(setting: Setting) -> Iterator[Case]:
    """The optimizer's step, each micro-batch, then a group from its first loss to the step."""
    learning = _learning(setting)
    yield measure("clip, AdamW, average", learning.step, setting)
    measured = {}
    for micro_batch in setting.sizes.micro_batches:
        measured[micro_batch] = _micro_batch(learning, setting, micro_batch)
        yield measured[micro_batch]
    yield _whole_group(learning, setting, measured[setting.sizes.group_update])


def _learning(setting: Setting) -> _Learning:
    sizes = setting.sizes
    policy = networks.policy(setting)
    trajectory = group(policy, setting, samples=sizes.group_size, samples_per_forward=sizes.group_update.samples)
    draw = torch.Generator().manual_seed(2)
    advantages = torch.randn(sizes.group_size, generator=draw)
    adapter = WholeAdapter(policy, OptimSection())
    for _, parameter in policy.trainable():
        parameter.grad = torch.zeros_like(parameter)
    return _Learning(
        policy=policy,
        adapter=adapter,
        average=tuple(value.clone() for value in adapter.adapter().values()),
        batch=TrainBatch(trajectory=trajectory, advantages=advantages),
        algorithm=algorithm(with_reference=True),
    )


def _micro_batch(learning: _Learning, setting: Setting, micro_batch: MicroBatch) -> Case:
    learning.checkpoint(micro_batch.checkpointing)
    samples, step_index = slice(0, micro_batch.samples), learning.batch.trajectory.plan.trained[-1]
    return measure(micro_batch.name, lambda: learning.learn(samples, step_index), setting)


def _whole_group(learning: _Learning, setting: Setting, of_one: Case) -> Case:
    """The update on a group, once: it is long, and its parts have been repeated before."""
    micro_batch, num_samples = setting.sizes.group_update, setting.sizes.group_size
    trained = learning.batch.trajectory.plan.trained
    name = f"group of {num_samples}, {len(trained)} steps: {micro_batch.name}"
    if not of_one.seconds:
        return replace(of_one, name=name)
    parts = [slice(at, at + micro_batch.samples) for at in range(0, num_samples, micro_batch.samples)]

    def update() -> None:
        learning.adapter.forget()
        for part in parts:
            for step_index in trained:
                learning.learn(part, step_index)
        learning.step()

    learning.checkpoint(micro_batch.checkpointing)
    flops = of_one.flops * len(parts) * len(trained)
    return measure(name, update, setting, images=num_samples, first=learning.step, flops=flops, repeats=1)
