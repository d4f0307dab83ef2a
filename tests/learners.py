"""Learners on the tiny policy, what they are given, and what is read of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from flowrl.actors.fused import Fused
from flowrl.actors.learner import Learner
from flowrl.actors.strategies.whole_adapter import WholeAdapter
from flowrl.algorithms.configs import FlowGRPOConfig
from flowrl.config import GateSection, LearnerStrategy, OptimSection
from flowrl.model_spec import ModelSpec
from flowrl.models.sd3 import SD3Policy
from flowrl.types import Metric, Trajectory
from tests import tiny

EXACT = GateSection(max_ratio_absdev=0.0)
LOOSE = GateSection(max_ratio_absdev=1.0)


def learner(
    folder: Path,
    *,
    part: int = 0,
    gate: GateSection = EXACT,
    strategy: LearnerStrategy = "ddp",
    model: ModelSpec | None = None,
    **options: Any,
) -> Learner:
    algorithm, optim = sections(**options)
    return Learner(model or tiny.model_spec(folder), algorithm, optim, gate, part, strategy=strategy)


def sections(**options: Any) -> tuple[FlowGRPOConfig, OptimSection]:
    optim = {key: options.pop(key) for key in list(options) if key in OptimSection.__dataclass_fields__}
    return FlowGRPOConfig(**{"inner_steps": 1, "kl_beta": 0.05, **options}), OptimSection(**optim)


def groups(policy: SD3Policy, count: int = 2, **options: Any) -> list[Trajectory]:
    return [tiny.trajectory(policy, prompt_id=i, **options) for i in range(count)]


def advantages(count: int = 2) -> list[torch.Tensor]:
    return [torch.randn(4, generator=torch.Generator().manual_seed(i)) for i in range(count)]


def weights(trained: Learner | Fused, *, ema: bool = False) -> torch.Tensor:
    return torch.from_numpy(trained.weights(ema=ema).payload.view("float32").copy())


def optimizer_of(trained: Learner) -> torch.optim.AdamW:
    assert isinstance(trained._strategy, WholeAdapter)
    return trained._strategy.optimizer


def metric(metrics: list[Metric], key: str) -> list[float]:
    found = [one.value for one in metrics if one.key == key]
    assert found, f"no {key}"
    return found


def rolled(trained: Learner, **options: Any) -> list[Trajectory]:
    """Groups sampled with the weights that a learner has now, by its own policy."""
    policy = trained._policy
    assert isinstance(policy, SD3Policy)
    version = trained.weights(ema=False).version
    return [replace(group, policy_version=version) for group in groups(policy, **options)]
