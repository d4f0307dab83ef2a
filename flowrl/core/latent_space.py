"""Names for latent spaces, by which a reward knows whether it can read a policy's latents."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_NAME = re.compile(r"vae([1-9]\d*)x([1-9]\d*)(-.*)?")


def latent_space_name(*, channels: int, factor: int, scaling: float, shift: float) -> str:
    """The name of the space of (vae latent - shift) * scaling; SD3.5's is "vae16x8-scale1.5305-shift0.0609"."""
    return f"vae{channels}x{factor}-scale{scaling:g}-shift{shift:g}"


def factor_of(vae: Mapping[str, Any]) -> int:
    """The pixels along one side of a latent of a VAE, from its config as diffusers saves it."""
    return int(2 ** (len(vae["block_out_channels"]) - 1))


def latent_space_of(vae: Mapping[str, Any]) -> str:
    """The name of the space of a VAE, from its config as diffusers saves it; raises KeyError where that lacks a key."""
    return latent_space_name(
        channels=int(vae["latent_channels"]),
        factor=factor_of(vae),
        scaling=float(vae["scaling_factor"]),
        shift=float(vae["shift_factor"]),
    )


def channels_and_factor(name: str) -> tuple[int, int] | None:
    """The channels of a named space's latents, and the pixels along one side of a latent; None for any other name."""
    match = _NAME.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None
