"""The actor that trains the adapter."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialize

from flowrl.actors.strategies.strategy import is_first_rank, join, largest_over_ranks, share
from flowrl.actors.turns import move_frozen
from flowrl.actors.weights import pack
from flowrl.algorithms.configs import FlowGRPOConfig
from flowrl.base.errors import UserError
from flowrl.config import CUTTING, GateSection, LearnerStrategy, OptimSection
from flowrl.model_spec import ModelSpec
from flowrl.protocols import Algorithm, Policy
from flowrl.registry import resolve
from flowrl.types import (
    LossOutput,
    Metric,
    PolicyWeights,
    TrainBatch,
    Trajectory,
    UpdateResult,
)


class TrainingError(UserError, RuntimeError):
    """Numbers that must not be trained on; the run continues from its last checkpoint."""


class Learner:
    """One rank of the learner group; the ranks train equal weights on the mean of their gradients.

    How they share the model is `strategy`. Where it is not ddp, all but `weights` must be called on every rank.
    """

    def __init__(
        self,
        model: ModelSpec,
        algorithm: FlowGRPOConfig,
        optim: OptimSection,
        gate: GateSection,
        samples_per_forward: int,
        policy: Policy | None = None,
        *,
        strategy: LearnerStrategy = "ddp",
        timeout_s: float = 300.0,
    ) -> None:
        join(strategy, model.device, timeout_s)
        model.prepare_process()
        self._policy = policy or model.load_policy(to_be_cut=strategy in CUTTING)
        self._algorithm: Algorithm = resolve("algorithm", algorithm.name)[0](algorithm, model.seed)
        self._optim = optim
        self._gate = gate
        self._samples_per_forward = samples_per_forward
        self._device = model.device
        self._strategy = share(strategy, self._policy, optim, model.device)
        self._ema = self._copy()
        self._step = 0
        self._version = 0  # optimizer steps taken

    def update(self, step: int, advantages: list[torch.Tensor], *trajectories: Trajectory) -> UpdateResult:
        """One step: its inner steps, each on an equal share of the groups in their order.

        Raises TrainingError on every rank, before any weight changes, when a ratio that must be 1 is not; and before
        the optimizer step at hand when a gradient is not finite.
        """
        if step != self._step + 1:
            raise TrainingError(f"learner: step {step} was asked for, but step {self._step + 1} is due")
        self._check_version(trajectories)
        batches = [
            TrainBatch(trajectory=trajectory, advantages=advantage)
            for trajectory, advantage in zip(trajectories, advantages, strict=True)
        ]
        share = len(batches) // self._algorithm.inner_steps
        metrics: list[Metric] = []
        for inner in range(self._algorithm.inner_steps):
            metrics += self._inner_step(batches[inner * share : (inner + 1) * share], first=inner == 0)
        self._step = step
        metrics.append(Metric(key="policy/version", value=self._version, reduce="last"))
        return UpdateResult(policy_version=self._version, metrics=metrics)

    def _inner_step(self, batches: list[TrainBatch], *, first: bool) -> list[Metric]:
        micro_batches = [
            (batch, samples, step_index)
            for batch in batches
            for samples in self._parts(batch.trajectory.num_samples)
            for step_index in batch.trajectory.plan.trained
        ]
        metrics: list[Metric] = []
        deviations: list[float] = []
        self._strategy.forget()  # an attempt that was stopped leaves its gradients
        for i, (batch, samples, step_index) in enumerate(micro_batches):
            with self._strategy.micro_batch(last=i == len(micro_batches) - 1):
                output: LossOutput = self._algorithm.loss(self._policy, batch, samples, step_index)
                self._strategy.backward(output.loss / len(micro_batches))
            deviations.append(output.ratio_absdev)
            metrics += [*output.metrics, *(output.drift if first else ())]
        if first:
            self._check_ratio(deviations)
        norm = self._strategy.step()
        if not math.isfinite(norm):  # which it then is on every rank
            raise TrainingError(
                f"learner: the gradient norm is {norm}; the optimizer step after the {self._version}th was not taken. "
                "Lower optim.lr or algorithm.noise_level, or use model.dtype=float32"
            )
        self._version += 1
        self._average()
        return [*metrics, Metric(key="policy/grad_norm", value=norm)]

    def _parts(self, num_samples: int) -> Iterator[slice]:
        size = self._samples_per_forward or num_samples
        return (slice(start, start + size) for start in range(0, num_samples, size))

    def _check_version(self, trajectories: Sequence[Trajectory]) -> None:
        """Raise when a group was not sampled with the weights that are about to be trained."""
        versions = {trajectory.policy_version for trajectory in trajectories}
        if versions != {self._version}:
            raise TrainingError(
                f"learner: groups were sampled with weights of version {sorted(versions)}, but those to be trained are "
                f"version {self._version}; give the rollouts the newest weights before they sample"
            )

    def _check_ratio(self, deviations: list[float]) -> None:
        """Raise on every rank when a ratio of any rank is off; a NaN is."""
        worst = largest_over_ranks(torch.tensor(deviations).max().item(), self._device)
        if not worst <= self._gate.max_ratio_absdev:
            raise TrainingError(
                f"learner: before the first update of a step the ratio must be 1, but deviates by {worst:.3g} (gate."
                f"max_ratio_absdev is {self._gate.max_ratio_absdev:.3g}): rollout and learner compute differently. "
                "Check that model.dtype, rollout.samples_per_forward and the devices agree, or raise the gate"
            )

    def _average(self) -> None:
        """Apply the moving average, every `ema_every` optimizer steps."""
        if self._version % self._optim.ema_every:
            return
        decay = min(self._optim.ema_decay, (1 + self._version) / (10 + self._version))
        for name, value in self._strategy.adapter().items():
            self._ema[name].lerp_(value, 1 - decay)

    def _copy(self) -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in self._strategy.adapter().items()}

    def weights(self, ema: bool) -> PolicyWeights:
        """The current weights, or their moving average."""
        adapter = self._ema if ema else self._strategy.adapter()
        return pack(adapter.items(), self._version, is_average=ema)

    def save(self, folder: str) -> None:
        """Write all that a resumed run needs of the learners: whole tensors, so that any strategy can go on from them.

        The first rank writes.
        """
        moments = self._strategy.moments()
        if not is_first_rank():
            return
        path = Path(folder)
        optimizer = io.BytesIO()
        torch.save({"optimizer": moments, "step": self._step, "version": self._version}, optimizer)
        # Written by Python, because the libraries' own writers do not say when it was the disk that was full.
        for file, values in (("adapter", self._strategy.adapter()), ("ema", self._ema)):
            tensors = {name: value.cpu().contiguous() for name, value in values.items()}
            (path / f"{file}.safetensors").write_bytes(serialize(tensors))
        (path / "optimizer.pt").write_bytes(optimizer.getvalue())

    def load(self, folder: str) -> None:
        """Continue from what `save` wrote."""
        path = Path(folder)
        adapter = load_file(path / "adapter.safetensors")
        ema = load_file(path / "ema.safetensors")
        with self._strategy.whole(), torch.no_grad():
            for name, parameter in self._policy.trainable():
                parameter.copy_(adapter[name])
                self._ema[name].copy_(ema[name])
        state = torch.load(path / "optimizer.pt", weights_only=True, map_location="cpu")
        self._strategy.load_moments(state["optimizer"])
        self._step, self._version = state["step"], state["version"]

    def sees(self, file: str) -> bool:
        """Whether a file is there, on the node of this learner."""
        return Path(file).is_file()

    def move_frozen(self, on_device: bool) -> None:
        """Have the frozen weights on the device, or else in the host's memory."""
        move_frozen(self._policy.module, self._device if on_device else "cpu")

    def export(self, folder: str) -> None:
        """Write the adapter as the family's own pipeline loads it; the first rank writes."""
        with self._strategy.whole():
            if is_first_rank():
                self._policy.save_adapter(Path(folder))

    def load_adapter(self, folder: str) -> None:
        """Start from an exported adapter; the moving average starts there too."""
        with self._strategy.whole():
            self._policy.load_adapter(Path(folder))
        self._ema = self._copy()
