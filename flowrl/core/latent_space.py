"""Names for latent spaces, by which a reward knows whether it can read a policy's latents."""

from __future__ import annotations


def latent_space_name(*, channels: int, factor: int, scaling: float, shift: float) -> str:
    """The name of the space of (vae latent - shift) * scaling; SD3.5's is "vae16x8-scale1.5305-shift0.0609"."""
    return f"vae{channels}x{factor}-scale{scaling:g}-shift{shift:g}"
