"""The actor that samples groups."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from flowrl.actors.turns import move_frozen
from flowrl.actors.weights import unpack
from flowrl.base.errors import UserError
from flowrl.core.sampler import sample
from flowrl.model_spec import ModelSpec
from flowrl.protocols import Policy
from flowrl.types import PolicyWeights, RolloutRequest, TextCondition, Trajectory


class SamplingError(UserError, RuntimeError):
    """The policy made numbers that are none."""


class Rollout:
    """Samples with the behaviour policy: the weights that it was last given."""

    def __init__(self, model: ModelSpec, samples_per_forward: int, policy: Policy | None = None) -> None:
        model.prepare_process()
        self._policy = policy or model.load_policy()
        self._samples_per_forward = samples_per_forward
        self._device = torch.device(model.device)
        self._version = 0

    def generate(self, request: RolloutRequest, condition: TextCondition, negative: TextCondition) -> Trajectory:
        """Sample one group."""
        began = time.perf_counter()
        trajectory = sample(
            self._policy,
            request,
            condition,
            negative,
            policy_version=self._version,
            samples_per_forward=self._samples_per_forward or request.num_samples,
            device=self._device,
        )
        if not torch.isfinite(trajectory.final_latents).all():
            raise SamplingError(
                f"rollout: samples of the prompt {request.prompt.text!r} are not finite; the weights of the policy are "
                "damaged, the adapter has diverged, or model.dtype is too narrow for them"
            )
        return replace(trajectory, seconds=time.perf_counter() - began)

    def move_frozen(self, on_device: bool) -> None:
        """Have the frozen weights on the device, or else in the host's memory."""
        move_frozen(self._policy.module, self._device.type if on_device else "cpu")

    def load_weights(self, weights: PolicyWeights) -> int:
        """Sample with these weights from now on; returns their bytes. Raises WeightsError when they do not fit."""
        unpack(weights, self._policy.trainable())
        self._version = weights.version
        return int(weights.payload.nbytes)
