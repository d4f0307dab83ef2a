"""The moving average of the weights that learn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class MovingAverage:
    """An exponential moving average in float32 that starts as the weights; its decay grows from 0.1 to `decay`."""

    def __init__(self, weights: dict[str, torch.nn.Parameter], decay: float) -> None:
        self._weights = weights
        self._decay = decay
        self.values = {name: p.detach().float().clone() for name, p in weights.items()} if decay else {}

    def update(self, step: int) -> None:
        """Take in the weights after step `step` (from 0)."""
        if not self._decay:
            return
        decay = min(self._decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, value in self.values.items():
                value.lerp_(self._weights[name].float(), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the context the weights are the average; without a decay nothing changes."""
        kept = {name: self._weights[name].detach().clone() for name in self.values}
        self._set(self.values)
        try:
            yield
        finally:
            self._set(kept)

    def adopt(self) -> None:
        """Make the weights the average for good; nothing changes without a decay."""
        self._set(self.values)

    def load(self, values: dict[str, torch.Tensor]) -> None:
        """Go on from stored values."""
        for name, value in self.values.items():
            value.copy_(values[name])

    def _set(self, values: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, value in values.items():
                self._weights[name].copy_(value)
