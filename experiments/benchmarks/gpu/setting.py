"""What every part of the benchmark is given."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from experiments.benchmarks.gpu.sizes import REAL, SMALL, Sizes


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Which shapes are measured where, and until when.

    Example: ``Setting(small=True, until=time.monotonic() + 60)`` measures tiny shapes on the CPU.
    """

    small: bool
    until: float  # on the monotonic clock, which is that of all processes

    @property
    def sizes(self) -> Sizes:
        """The shapes."""
        return SMALL if self.small else REAL

    @property
    def device(self) -> torch.device:
        """The CPU for the small shapes, and for the real ones the first GPU."""
        return torch.device("cpu" if self.small else "cuda")

    @property
    def is_late(self) -> bool:
        """Whether no more time is left."""
        return time.monotonic() >= self.until
