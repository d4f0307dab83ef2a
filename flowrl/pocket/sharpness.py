"""A reward that knows nothing of prompts and learned nothing: what a trained one must beat."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

from flowrl.types import RewardInput
from rewards.batch_inputs import pixels_of


class Sharpness:
    """The logarithm of the variance of an image's Laplacian, a common measure of focus."""

    name = "sharpness"
    input_kind: Literal["latent", "pixel"] = "pixel"
    latent_space: str | None = None
    batch_size = 256

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)

    def __call__(self, batch: RewardInput) -> torch.Tensor:
        """Scores [B] float32 of pixels [B, 3, H, W]; raises ValueError when the batch has none."""
        pixels = pixels_of(batch, self.name, self.device)
        if min(pixels.shape[2:]) < 4:
            return torch.full((len(pixels),), float("nan"))  # too small to have a focus
        grey = pixels.mean(1, keepdim=True)
        kernel = grey.new_tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])[None, None]
        return F.conv2d(grey, kernel).var((1, 2, 3)).clamp_min(1e-12).log()
