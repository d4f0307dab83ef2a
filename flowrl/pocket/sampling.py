"""Draws many images from the pocket policy at once: a written-out sampler with its own guidance for each sample."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline

from flowrl.core import sde
from flowrl.core.schedule import flow_match_sigmas
from flowrl.pocket.text import MAX_TOKENS
from flowrl.types import StepKind

_TEXTS_PER_CALL = 256


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """What the pocket text encoders make of P texts."""

    embeds: torch.Tensor  # [P, 28, 96] float32
    pooled: torch.Tensor  # [P, 80] float32


@dataclass(frozen=True, kw_only=True)
class SamplerSetting:
    """How one batch is drawn.

    Example: the published rollout, ``SamplerSetting(num_steps=10, guidance=4.5, noisy_steps=9)``.
    """

    num_steps: int
    guidance: float | torch.Tensor  # one for all samples, or [B]
    noise_level: float = 0.7  # `a` of arXiv:2505.05470 eq. 9
    noisy_steps: int = 0  # the first steps are drawn by the SDE, the rest by the ODE


@torch.no_grad()
def encode_texts(pipeline: StableDiffusion3Pipeline, texts: list[str]) -> TextTable:
    """The conditions of texts, each as if it had been encoded alone."""
    embeds, pooled = [], []
    for start in range(0, len(texts), _TEXTS_PER_CALL):
        part, _, part_pooled, _ = pipeline.encode_prompt(
            texts[start : start + _TEXTS_PER_CALL],
            None,
            None,
            device=torch.device("cpu"),
            do_classifier_free_guidance=False,
            max_sequence_length=MAX_TOKENS,
        )
        embeds.append(part)
        pooled.append(part_pooled)
    return TextTable(embeds=torch.cat(embeds), pooled=torch.cat(pooled))


@torch.no_grad()
def sample_latents(
    transformer: SD3Transformer2DModel,
    condition: TextTable,
    negative: TextTable,
    setting: SamplerSetting,
    generator: torch.Generator,
    *,
    shift: float,
) -> torch.Tensor:
    """Final latents [B, 16, 8, 8] float32, model-scaled, for B conditions and the one negative condition."""
    batch = len(condition.embeds)
    sigmas = flow_match_sigmas(setting.num_steps, shift=shift)
    embeds = torch.cat([negative.embeds.expand(batch, -1, -1), condition.embeds])
    pooled = torch.cat([negative.pooled.expand(batch, -1), condition.pooled])
    guidance = torch.as_tensor(setting.guidance, dtype=torch.float32).reshape(-1, 1, 1, 1)
    size = transformer.config.sample_size
    x = torch.randn(batch, transformer.config.in_channels, size, size, generator=generator)
    for step in range(setting.num_steps):
        without, guided = transformer(
            hidden_states=torch.cat([x, x]),
            timestep=(1000 * sigmas[step]).expand(2 * batch),
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
            return_dict=False,
        )[0].chunk(2)
        velocity = (without + guidance * (guided - without)).float()
        kind: StepKind = "sde" if step < setting.noisy_steps else "ode"
        following = sde.transition(kind, x, velocity, sigmas, step, setting.noise_level)
        x = sde.draw(following, torch.randn(x.shape, generator=generator))
    return x


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Images [B, 3, 64, 64] float32 in [0, 1] of model-scaled latents [B, 16, 8, 8]."""
    unscaled = latents.float() / vae.config.scaling_factor + vae.config.shift_factor
    return (vae.decode(unscaled).sample.float() / 2 + 0.5).clamp(0, 1)
