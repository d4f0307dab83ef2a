"""What the VAE of a policy takes to make images of latents, done on fake tensors of the real shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch._subclasses.fake_tensor import FakeTensorMode

from flowrl.models.sd3 import SD3Decoder
from flowrl.plan.meter import Meter, materialise


@dataclass(frozen=True, kw_only=True)
class DecodeCost:
    """Bytes and FLOPs of decoding latents in one call; a convolution's workspace is not in them."""

    weight_bytes: int
    rise: int
    flops: int


def decode_cost(vae: Mapping[str, Any], latent_shape: tuple[int, ...], samples: int) -> DecodeCost:
    """The cost of decoding `samples` latents with the VAE that `vae`, its config.json, describes."""
    mode, meter = FakeTensorMode(allow_non_fake_inputs=True), Meter()
    with torch.device("meta"):
        net = AutoencoderKL.from_config(dict(vae)).eval()
    with meter:
        materialise(net, mode)
    weights = meter.live
    with mode:
        latents = torch.empty(samples, *latent_shape)
    with meter.stretch() as work:
        SD3Decoder(net).decode(latents)
    return DecodeCost(weight_bytes=weights, rise=work.rise, flops=work.flops)
