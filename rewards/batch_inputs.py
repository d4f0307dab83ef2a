"""What rewards take out of a batch, on their device, and how they refuse a batch that does not hold it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from flowrl.types import RewardInput


def pixels_of(batch: RewardInput, reward: str, device: torch.device) -> torch.Tensor:
    """The pixels [B, 3, H, W] float32 of a batch, on `device`; raises ValueError when it has none."""
    if batch.pixels is None:
        raise ValueError(f"{reward} scores images: the batch must hold pixels")
    return batch.pixels.to(device).float()


@dataclass(frozen=True, kw_only=True)
class LatentFormat:
    """The latents and texts that a reward reads, and its noise.

    Example: ``LatentFormat(reward="dit_reward", latent_space="vae16x8-scale1.5305-shift0.0609", channels=16,
    text_length=333, noise=sample_noise)``
    """

    reward: str
    latent_space: str
    channels: int
    text_length: int  # tokens; 0: any
    noise: Callable[[torch.Tensor, tuple[int, ...]], torch.Tensor]  # of seeds [B], of a shape, a stream for each reward

    def tensors(
        self, batch: RewardInput, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents [B, C, h, w], noise of that shape by the seeds, embeds [B, L, D] and pooled [B, P], on `device`.

        Raises ValueError when the batch lacks latents or their condition, or has other channels or another text length.
        """
        latents, condition = batch.latents, batch.condition
        if latents is None or condition is None:
            raise ValueError(f"{self.reward} scores latents: the batch must hold latents and their text condition")
        if latents.ndim != 4 or latents.shape[1] != self.channels:
            raise ValueError(
                f"{self.reward} reads latents of {self.channels} channels in the space {self.latent_space!r}, got "
                f"latents {list(latents.shape)}; use a reward made for this policy's VAE"
            )
        tokens = condition.embeds.shape[1]
        if self.text_length not in (0, tokens):
            raise ValueError(
                f"{self.reward} reads texts of {self.text_length} tokens, got {tokens}; encode prompts with the "
                "max_sequence_length that the reward was trained with"
            )
        size = len(latents)
        noise = self.noise(batch.seeds, tuple(latents.shape[1:]))
        embeds, pooled = condition.embeds.expand(size, -1, -1), condition.pooled.expand(size, -1)
        return latents.to(device), noise.to(device), embeds.to(device), pooled.to(device)
