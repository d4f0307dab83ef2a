"""Images pass through a policy's VAE a few at a time, whichever way."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from flowrl.protocols import Decoder

TOGETHER = 4  # images in one call of the VAE: at 1024 pixels it takes gigabytes for each


class SplitDecoder:
    """An image decoder that is loaded when it is first needed, and decodes `TOGETHER` samples at a time.

    A group that is given whole has the same pixels wherever it is decoded. A sample alone may differ in the last bits:
    on the CPU 4 in a call come out as 16 do, but 1 does not.
    """

    def __init__(self, load: Callable[[], Decoder]) -> None:
        self._decoder = cache(load)

    def load(self) -> None:
        """Load the decoder now, if it is not there."""
        self._decoder()

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Model-scaled latents [B, ...] to pixels [B, 3, H, W] float32 in [0, 1] on the CPU."""
        return torch.cat([self._decoder().decode(part).cpu() for part in latents.split(TOGETHER)])
