"""The names by which a measured case finds the one that the plan computes, and the published one."""

from __future__ import annotations

# Ways from a latent or from an image to its score.
LATENT = "DiT-Reward, latent"
PIXEL = "DiT-Reward, pixel: encode, score"
DECODED = "DiT-Reward, pixel: decode, encode, score"
HPSV3 = "HPSv3, pixel"
HPSV3_DECODED = "HPSv3, pixel: decode, score"


def rollout(samples_per_forward: int) -> str:
    """A group sampled by forwards of so many samples."""
    return f"group, {samples_per_forward} per forward"


def decode(images: int) -> str:
    """Latents decoded to images."""
    return f"VAE decode, batch {images}"


def reward(path: str, images: int) -> str:
    """Images scored along a path."""
    return f"{path}, batch {images}"
