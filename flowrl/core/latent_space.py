"""Names for latent spaces, by which a reward knows whether it can read a policy's latents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def latent_space_name(*, channels: int, factor: int, scaling: float, shift: float) -> str:
    """The name of the space of (vae latent - shift) * scaling; SD3.5's is "vae16x8-scale1.5305-shift0.0609"."""
    return f"vae{channels}x{factor}-scale{scaling:g}-shift{shift:g}"


def latent_space_of(vae: Mapping[str, Any]) -> str:
    """The name of the space of a VAE, from its config as diffusers saves it; raises KeyError where that lacks a key."""
    return latent_space_name(
        channels=int(vae["latent_channels"]),
        factor=2 ** (len(vae["block_out_channels"]) - 1),
        scaling=float(vae["scaling_factor"]),
        shift=float(vae["shift_factor"]),
    )
