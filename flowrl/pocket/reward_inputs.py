"""Batches for trying a reward: pocket renderings with their flaws, as they come out of the pocket policy's VAE."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from diffusers import AutoencoderKL

from flowrl.base.embedded import embedded
from flowrl.base.errors import UserError
from flowrl.core.latent_space import channels_and_factor
from flowrl.core.seeds import generator
from flowrl.models.sd3 import SD3
from flowrl.pocket.generator import scaled_latents
from flowrl.pocket.render import render
from flowrl.pocket.scene import IMAGE_SIZE, Scene
from flowrl.pocket.text import MAX_TOKENS
from flowrl.types import RewardInput, TextCondition

_SCENES = ("a large red circle on sand", "a small blue square above a large green triangle on snow")
# The last prompt is not that of its image.
PROMPTS = (*_SCENES, _SCENES[0], _SCENES[1].replace("above", "below"))


@dataclass(frozen=True, kw_only=True)
class TextShape:
    """The size of a text condition.

    Example: SD3.5 with 256 T5 tokens, ``TextShape(length=333, width=4096, pooled=2048)``
    """

    length: int
    width: int
    pooled: int


def pixel_batch(image_size: int = IMAGE_SIZE) -> RewardInput:
    """Four decoded renderings, pixels [4, 3, image_size, image_size], each pixel repeated where that is above 64.

    Raises UserError when `image_size` is no multiple of 64.
    """
    if image_size < IMAGE_SIZE or image_size % IMAGE_SIZE:
        raise UserError(f"the image size must be a multiple of {IMAGE_SIZE}, got {image_size}")
    pixels, _ = _samples()
    times = image_size // IMAGE_SIZE
    pixels = pixels.repeat_interleave(times, 2).repeat_interleave(times, 3)
    return RewardInput(prompts=PROMPTS, seeds=_seeds(), pixels=pixels)


def latent_batch(latent_space: str, image_size: int = IMAGE_SIZE, text: TextShape | None = None) -> RewardInput:
    """Four latents of a space: those of the renderings for the pocket policy's, noise for any other space and size.

    The text condition is the pocket policy's, or noise of the shape `text`. Raises UserError when the name of the space
    does not say its channels.
    """
    if latent_space == SD3.latent_space(embedded("sd35")) and image_size == IMAGE_SIZE:
        _, latents = _samples()
    else:
        latents = torch.randn(4, *_latent_shape(latent_space, image_size), generator=generator("latents", latent_space))
    return RewardInput(prompts=PROMPTS, seeds=_seeds(), latents=latents.clone(), condition=_condition(text))


def _latent_shape(latent_space: str, image_size: int) -> tuple[int, int, int]:
    found = channels_and_factor(latent_space)
    if found is None:
        raise UserError(
            f"the latent space {latent_space!r} does not say how many channels there are: it must be named as "
            "flowrl.core.latent_space does, such as vae16x8-scale1.5305-shift0.0609"
        )
    channels, factor = found
    side = max(1, image_size // factor)
    return channels, side, side


def _seeds() -> torch.Tensor:
    return torch.arange(len(PROMPTS)) + 100


@cache
def _samples() -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels [4, 3, 64, 64] and latents [4, 16, 8, 8]."""
    images = render([Scene.parse(prompt) for prompt in _SCENES * 2], torch.Generator().manual_seed(3), clean_share=0.0)
    with torch.no_grad():
        latents = scaled_latents(AutoencoderKL.from_pretrained(embedded("sd35") / "vae"), images)
    return SD3.load_decoder(embedded("sd35"), device="cpu").decode(latents), latents


@cache
def _condition(text: TextShape | None) -> TextCondition:
    """Embeds [4, L, D] and pooled [4, P] float32."""
    if text is not None:
        draw = generator("text", text.length, text.width, text.pooled)
        return TextCondition(
            embeds=torch.randn(len(PROMPTS), text.length, text.width, generator=draw),
            pooled=torch.randn(len(PROMPTS), text.pooled, generator=draw),
        )
    encoder = SD3.load_encoder(embedded("sd35"), max_sequence_length=MAX_TOKENS, dtype=torch.float32, device="cpu")
    conditions = [encoder.encode(prompt) for prompt in PROMPTS]
    return TextCondition(
        embeds=torch.cat([one.embeds for one in conditions]), pooled=torch.cat([one.pooled for one in conditions])
    )
