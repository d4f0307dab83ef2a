"""Fused placement: an actor that both samples and trains, on one copy of the model."""

from __future__ import annotations

import torch

from flowrl.actors.learner import Learner
from flowrl.actors.rollout import Rollout
from flowrl.actors.weights import unpack
from flowrl.algorithms.configs import FlowGRPOConfig
from flowrl.config import GateSection, LearnerStrategy, OptimSection
from flowrl.model_spec import ModelSpec
from flowrl.types import (
    PolicyWeights,
    RolloutRequest,
    TextCondition,
    Trajectory,
    UpdateResult,
)


class Fused:
    """A Rollout and a Learner that share their policy; what the rollout samples with never disturbs training."""

    def __init__(
        self,
        model: ModelSpec,
        algorithm: FlowGRPOConfig,
        optim: OptimSection,
        gate: GateSection,
        samples_per_forward: int,
        *,
        strategy: LearnerStrategy = "ddp",
        timeout_s: float = 300.0,
    ) -> None:
        self._policy = model.load_policy()
        self._learner = Learner(
            model,
            algorithm,
            optim,
            gate,
            samples_per_forward,
            self._policy,
            strategy=strategy,
            timeout_s=timeout_s,
        )
        self._rollout = Rollout(model, samples_per_forward, self._policy)
        self._live: PolicyWeights | None = None  # the learner's weights while the rollout samples with others

    def generate(self, request: RolloutRequest, condition: TextCondition, negative: TextCondition) -> Trajectory:
        """Sample one group."""
        return self._rollout.generate(request, condition, negative)

    def move_frozen(self, on_device: bool) -> None:
        """Have the frozen weights, which both share, on the device, or else in the host's memory."""
        self._rollout.move_frozen(on_device)

    def load_weights(self, weights: PolicyWeights) -> int:
        """Sample with these weights from now on; those of the learner are set aside while they are an average."""
        if not weights.is_average:
            self._live = None
        elif self._live is None:
            self._live = self._learner.weights(ema=False)
        return self._rollout.load_weights(weights)

    def update(self, step: int, advantages: list[torch.Tensor], *trajectories: Trajectory) -> UpdateResult:
        """One step of the learner, from its own weights."""
        self._restore()
        return self._learner.update(step, advantages, *trajectories)

    def weights(self, ema: bool) -> PolicyWeights:
        """The learner's current weights, or their moving average."""
        self._restore()
        return self._learner.weights(ema)

    def sees(self, file: str) -> bool:
        """Whether a file is there, on the node of this actor."""
        return self._learner.sees(file)

    def save(self, folder: str) -> None:
        """Write all that a resumed run needs."""
        self._restore()
        self._learner.save(folder)

    def load(self, folder: str) -> None:
        """Continue from what `save` wrote."""
        self._live = None
        self._learner.load(folder)

    def export(self, folder: str) -> None:
        """Write the adapter as the family's own pipeline loads it."""
        self._restore()
        self._learner.export(folder)

    def load_adapter(self, folder: str) -> None:
        """Start from an exported adapter."""
        self._live = None
        self._learner.load_adapter(folder)

    def _restore(self) -> None:
        if self._live is not None:
            unpack(self._live, self._policy.trainable())
            self._live = None
