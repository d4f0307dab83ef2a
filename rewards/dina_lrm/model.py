"""The network of DiNa-LRM: the first blocks of a diffusion transformer read at one or more noise levels, and its head.

Published (arXiv 2602.11146 and its code): the taps after blocks 4, 8 and 12 of image and of text tokens, rectified-flow
noising x_t = (1 - sigma) x_0 + sigma eps, the noise level that stands nearest to u in the scheduler's shifted schedule
with the timestep of the same place, several levels by joining their tokens, with one noise for all of them. Inferred:
that noise follows the sample's seed, where the published code draws from the global generator.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from torch import nn

from flowrl.core.seeds import keyed_noise
from rewards.dina_lrm.head import RewardHead

_STREAM = "dina_lrm"


@dataclass(frozen=True, kw_only=True)
class DiNaConfig:
    """What the published config.json says of the network; the defaults are those of DiNa-LRM-SD35M-12layers.

    Example: ``DiNaConfig(taps=(4, 8, 12))``
    """

    taps: tuple[int, ...] = (4, 8, 12)  # tokens are read after so many blocks; none after the last is computed
    num_queries: int = 4
    num_heads: int = 8

    def __post_init__(self) -> None:
        if not self.taps or list(self.taps) != sorted(set(self.taps)) or self.taps[0] < 1:
            raise ValueError(f"taps must be ascending numbers of blocks from 1, got {list(self.taps)}")
        if min(self.num_queries, self.num_heads) < 1:
            raise ValueError(
                f"num_queries and num_heads must be at least 1, got {self.num_queries} and {self.num_heads}"
            )


@dataclass(frozen=True, kw_only=True)
class NoiseLevel:
    """A place of the noise schedule.

    Example: ``NoiseLevel(sigma=0.5, timestep=500.0)``
    """

    sigma: float  # in [0, 1], 1 is pure noise
    timestep: float  # what the transformer is told


def nearest_level(u: float, scheduler: FlowMatchEulerDiscreteScheduler) -> NoiseLevel:
    """The entry of the scheduler's shifted sigmas that is nearest to `u`, and the timestep of the same index."""
    index = int((scheduler.sigmas - u).abs().argmin())
    return NoiseLevel(sigma=scheduler.sigmas[index].item(), timestep=scheduler.timesteps[index].item())


def sample_noise(seeds: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal noise [B, *shape] float32 on the CPU, row b from seeds[b] alone."""
    # A stream of its own: the sampler, and another reward on the same sample, draw from the same seed.
    return keyed_noise(seeds, shape, _STREAM)


class Backbone(nn.Module):
    """The embeddings and the first blocks of an SD3 transformer; the rest of it is not kept."""

    def __init__(self, transformer: SD3Transformer2DModel, num_blocks: int) -> None:
        super().__init__()
        available = len(transformer.transformer_blocks)
        if num_blocks >= available:
            raise ValueError(
                f"the base has {available} blocks, more than {num_blocks} are needed: its last one returns no text"
            )
        self.pos_embed = transformer.pos_embed
        self.time_text_embed = transformer.time_text_embed
        self.context_embedder = transformer.context_embedder
        self.transformer_blocks = nn.ModuleList(list(transformer.transformer_blocks)[:num_blocks])


class DiNaModel(nn.Module):
    """The backbone and the reward head; all of the work is done in `forward`, the same modules each time."""

    def __init__(self, transformer: SD3Transformer2DModel, config: DiNaConfig, levels: tuple[NoiseLevel, ...]) -> None:
        super().__init__()
        self.config = config
        self.levels = levels
        self.backbone = Backbone(transformer, config.taps[-1])
        self.reward_head = RewardHead(
            transformer.inner_dim, len(config.taps), num_queries=config.num_queries, num_heads=config.num_heads
        )

    def taps(
        self, noisy: torch.Tensor, timestep: float, embeds: torch.Tensor, pooled: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
        """Image tokens [B, N, D] and text tokens [B, L, D] after each tapped block, and the condition temb [B, D]."""
        net = self.backbone
        steps = torch.full((len(noisy),), timestep, device=noisy.device, dtype=torch.float32)
        hidden = net.pos_embed(noisy).contiguous()
        temb = net.time_text_embed(steps, pooled)
        context = net.context_embedder(embeds)
        image_taps: list[torch.Tensor] = []
        text_taps: list[torch.Tensor] = []
        for number, block in enumerate(net.transformer_blocks, 1):
            context, hidden = block(hidden_states=hidden, encoder_hidden_states=context, temb=temb)
            if number in self.config.taps:
                image_taps.append(hidden)
                text_taps.append(context)
        return image_taps, text_taps, temb

    def forward(
        self, latents: torch.Tensor, noise: torch.Tensor, embeds: torch.Tensor, pooled: torch.Tensor
    ) -> torch.Tensor:
        """Scores [B] float32 of model-scaled latents [B, C, h, w] under noise of the same shape, embeds [B, L, D]
        and pooled [B, P]; one pass of the backbone for each noise level."""
        dtype = self.backbone.context_embedder.weight.dtype
        image: list[list[torch.Tensor]] = []
        text: list[list[torch.Tensor]] = []
        conditions: list[torch.Tensor] = []
        for level in self.levels:
            noisy = ((1 - level.sigma) * latents.float() + level.sigma * noise.float()).to(dtype)
            image_taps, text_taps, temb = self.taps(noisy, level.timestep, embeds.to(dtype), pooled.to(dtype))
            image.append(image_taps)
            text.append(text_taps)
            conditions.append(temb)
        scores: torch.Tensor = self.reward_head(image, text, conditions)
        return scores
