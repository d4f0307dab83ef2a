"""AdamW on an adapter that every rank holds whole: what DDP and FSDP2 have in common."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from flowrl.config import OptimSection
from flowrl.protocols import Policy


def adamw(parameters: Iterable[torch.nn.Parameter], optim: OptimSection) -> torch.optim.AdamW:
    """The optimizer of a configuration."""
    return torch.optim.AdamW(parameters, lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay)


class WholeAdapter:
    """The part of a strategy that is the same on every rank, once the gradients are."""

    def __init__(self, policy: Policy, optim: OptimSection) -> None:
        self._named = dict(policy.trainable())
        self._clip_norm = optim.clip_norm
        self.optimizer = adamw(self._named.values(), optim)

    def step(self) -> float:
        """Clip the gradient and step, if it is finite; returns its norm before."""
        norm = float(torch.nn.utils.clip_grad_norm_(self._named.values(), self._clip_norm))
        if math.isfinite(norm):
            self.optimizer.step()
        return norm

    def forget(self) -> None:
        """Drop the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def adapter(self) -> dict[str, torch.Tensor]:
        """The parameters themselves."""
        return {name: parameter.detach() for name, parameter in self._named.items()}

    def whole(self) -> AbstractContextManager[None]:
        """They always are."""
        return nullcontext()

    def moments(self) -> dict[str, Any]:
        """The state of the optimizer."""
        return self.optimizer.state_dict()

    def load_moments(self, state: dict[str, Any]) -> None:
        """Continue from the state of an optimizer."""
        self.optimizer.load_state_dict(state)
