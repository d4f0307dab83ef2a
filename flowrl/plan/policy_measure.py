"""Measures what a policy takes: its sampler step and its update, done on fake tensors of the real shapes.

The code that runs is that of a run, so a figure changes when the code does. Attention is counted as a fused kernel,
which is what torch picks for these shapes: it keeps its inputs, its output and one number per row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from flowrl.algorithms.configs import FlowGRPOConfig
from flowrl.core import sde
from flowrl.core.sampler import policy_step
from flowrl.models.quantised import QuantisedLinear, hollow_out
from flowrl.models.sd3 import SD3Policy
from flowrl.plan.meter import Meter, materialise
from flowrl.protocols import Algorithm
from flowrl.registry import resolve
from flowrl.types import DenoisePath, Prompt, Quantisation, SamplingPlan, TextCondition, TrainBatch, Trajectory

_SHIFT = 3.0  # of the schedule; shapes do not depend on it


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The shapes of one forward pass.

    Example: SD3.5-Large at 512 pixels, 4 samples of a group at a time with guidance:
    ``Geometry(latent_shape=(16, 64, 64), text_length=333, samples=4, guided=True, dtype=torch.bfloat16)``
    """

    latent_shape: tuple[int, ...]
    text_length: int
    samples: int  # of a group in one forward; guidance doubles the batch
    guided: bool
    dtype: torch.dtype  # of the frozen weights, less those of the blocks if they are quantised
    quantisation: Quantisation = "none"


@dataclass(frozen=True, kw_only=True)
class AdapterShape:
    """A LoRA on the layers whose names end in `targets`."""

    rank: int
    alpha: int
    targets: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PolicyCost:
    """Bytes and FLOPs of one role's work on one device; rises are peaks above the weights."""

    num_parameters: int  # of the frozen model
    num_adapter_layers: int
    num_adapter_parameters: int
    weight_bytes: int  # of the frozen model and its buffers
    buffer_bytes: int  # of these, what no strategy cuts
    block_bytes: int  # of these, the largest block
    adapter_bytes: int  # float32; the gradient and each of AdamW's two moments and the average take as much again
    sample_rise: int  # of one sampler step
    sample_flops: int
    update_rise: int  # of one loss and its backward pass, beside the gradients
    update_flops: int

    @property
    def training_bytes(self) -> int:
        """What a learner holds beside the frozen weights: adapter, gradients, two moments, moving average."""
        return 5 * self.adapter_bytes


def measure_policy(
    transformer: Mapping[str, Any],
    geometry: Geometry,
    adapter: AdapterShape,
    algorithm: FlowGRPOConfig,
    *,
    gradient_checkpointing: bool,
) -> PolicyCost:
    """The cost of a policy, all of its blocks measured; parameters as of `flowrl.plan.policy_cost.policy_cost`."""
    mode, meter = FakeTensorMode(allow_non_fake_inputs=True), Meter()
    network = _hollow(transformer, geometry)
    num_parameters = sum(parameter.numel() for parameter in network.parameters())
    hollow_out(network, geometry.quantisation, _HollowLinear)
    policy = _policy(network, geometry, adapter, gradient_checkpointing=gradient_checkpointing)
    with meter:
        materialise(policy.transformer, mode)
    weights = meter.live
    trainable = [parameter for _, parameter in policy.trainable()]
    adapter_bytes = sum(parameter.numel() * parameter.element_size() for parameter in trainable)
    with mode:
        batch = _batch(policy, geometry, algorithm)
        noise = torch.empty(geometry.samples, *geometry.latent_shape)
    trajectory = batch.trajectory
    # The mode itself is off: fake tensors carry it, and the few real ones, such as sigmas, keep their numbers.
    with meter.stretch() as sampling, torch.no_grad():
        step = policy_step(
            policy,
            noise,
            sigmas=policy.sigmas(2),
            step_index=0,
            plan=trajectory.plan,
            condition=trajectory.condition,
            negative=trajectory.negative,
            guidance_scale=trajectory.guidance_scale,
        )
        sde.log_prob(step, sde.draw(step, torch.empty_like(noise)))
    del step
    with meter:  # they are there from the first loss of an inner step to its end
        for parameter in trainable:
            parameter.grad = torch.empty_like(parameter)
    trained: Algorithm = resolve("algorithm", algorithm.name)[0](algorithm, 0)
    with meter.stretch() as update, _Unread():
        trained.loss(policy, batch, slice(0, geometry.samples), 0).loss.backward()
    return PolicyCost(
        num_parameters=num_parameters,
        num_adapter_layers=len(trainable) // 2,
        num_adapter_parameters=sum(parameter.numel() for parameter in trainable),
        weight_bytes=weights - adapter_bytes,
        buffer_bytes=sum(buffer.nbytes for buffer in policy.transformer.buffers()),
        block_bytes=max(map(_frozen_bytes, policy.transformer.transformer_blocks)),
        adapter_bytes=adapter_bytes,
        sample_rise=sampling.rise,
        sample_flops=sampling.flops,
        update_rise=update.rise,
        update_flops=update.flops,
    )


def _frozen_bytes(block: torch.nn.Module) -> int:
    return sum(parameter.nbytes for parameter in block.parameters() if not parameter.requires_grad)


class _HollowLinear(QuantisedLinear):
    """A quantised layer of codes and scales without numbers, which takes the memory of unpacking them."""

    def unpacked(self, dtype: torch.dtype) -> torch.Tensor:
        """A weight without numbers."""
        return self.scales.new_empty((self.out_features, self.in_features), dtype=dtype)


def _hollow(settings: Mapping[str, Any], geometry: Geometry) -> SD3Transformer2DModel:
    """The transformer on the meta device, of the dtype that its weights have in a run."""
    with torch.device("meta"):
        transformer = SD3Transformer2DModel.from_config(dict(settings))
    torch.nn.Module.to(transformer, geometry.dtype)  # diffusers' own `to` warns of what loading takes care of
    transformer.eval()
    return transformer


def _policy(
    transformer: SD3Transformer2DModel, geometry: Geometry, adapter: AdapterShape, *, gradient_checkpointing: bool
) -> SD3Policy:
    policy = SD3Policy(transformer, shift=_SHIFT, latent_space="", latent_shape=geometry.latent_shape)
    policy.attach_adapter(rank=adapter.rank, alpha=adapter.alpha, targets=list(adapter.targets), seed=0)
    if gradient_checkpointing:
        policy.checkpoint_activations()
    return policy


def _batch(policy: SD3Policy, geometry: Geometry, algorithm: FlowGRPOConfig) -> TrainBatch:
    """One forward's samples with one trained sampler step of two."""
    config, samples = policy.transformer.config, geometry.samples
    condition = TextCondition(
        embeds=torch.empty(1, geometry.text_length, config.joint_attention_dim, dtype=geometry.dtype),
        pooled=torch.empty(1, config.pooled_projection_dim, dtype=geometry.dtype),
    )
    stored, means = torch.empty(samples, 2, *geometry.latent_shape), torch.empty(samples, 1, *geometry.latent_shape)
    trajectory = Trajectory(
        prompt=Prompt(id=0, text=""),
        seeds=torch.empty(samples, dtype=torch.int64),
        condition=condition,
        negative=condition,
        final_latents=stored[:, -1],
        plan=SamplingPlan(kinds=(algorithm.step_kind,) * 2, noise_level=algorithm.noise_level, start=0, stop=1),
        guidance_scale=4.5 if geometry.guided else 1.0,
        path=DenoisePath(latents=stored, log_probs=torch.empty(samples, 1), means=means),
        policy_version=0,
    )
    return TrainBatch(trajectory=trajectory, advantages=torch.empty(samples))


class _Unread(TorchDispatchMode):
    """Within the context a number that is read of a fake tensor, which has none, is 0: metrics read some to log them,
    and nothing that is computed depends on them.
    """

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one operation, if it does not read a number that is not there."""
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 0.0
        return func(*args, **(kwargs or {}))
