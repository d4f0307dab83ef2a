"""The network of DiT-Reward: blocks of a diffusion transformer read at a near-clean noise level, pooled, and an MLP.

Published (arXiv 2606.23626): near-clean input (eq. 1), image-token states of chosen blocks, mean pooling,
concatenation and an MLP (eqs. 2-5), blocks 15, 23, 28, 37 of SD3.5-Large. Inferred, because no code or checkpoint is
public: the value of sigma, rectified-flow noising with timestep 1000 sigma, the sizes and activation of the MLP, the
normalisation of the features. Proposed by the paper as future work, and options here: text-token features beside image
tokens, attention pooling, several noise levels averaged. Of our own: a head for HPSv3's uncertainty loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import SD3Transformer2DModel
from peft import LoraConfig
from torch import nn
from torch.utils.checkpoint import checkpoint

from flowrl.core.seeds import keyed_noise
from flowrl.types import TrainedOn

Mode = Literal["frozen", "lora", "full"]
LORA_TARGETS = [
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
]
_TEXT_OUTPUT = (
    "attn.to_add_out.",
    "ff_context.",
    "attn.add_q_proj.",
    "attn.norm_added_q.",
)  # makes the text that leaves
_OUTPUT = ("norm_out.", "proj_out.")
_STREAM = "dit_reward"
_ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "silu": nn.SiLU}


@dataclass(frozen=True, kw_only=True)
class DiTRewardConfig:
    """What defines a DiT-Reward beside its weights; stored as its config.json.

    Example: ``DiTRewardConfig(text_length=333)`` is the published choice for SD3.5-Large.
    """

    text_length: int  # tokens of the text condition in training (CLIP and T5 together); the same in scoring
    layers: tuple[int, ...] = (15, 23, 28, 37)  # tapped blocks, 0-based, ascending
    sigmas: tuple[float, ...] = (0.05,)  # noise levels of the input, ascending, 0 = clean; outputs are averaged
    head_dims: tuple[int, ...] = (1536, 512)
    activation: Literal["gelu", "silu"] = "gelu"
    feature_norm: bool = True  # LayerNorm on the concatenated features
    text_features: bool = False  # also pool the text tokens that enter each tapped block
    pooling: Literal["mean", "attention"] = "mean"
    uncertainty: bool = False  # two outputs, the score and the log of its standard deviation
    latent_space: str = "vae16x8-scale1.5305-shift0.0609"  # as flowrl.core.latent_space names it
    base: str = "stabilityai/stable-diffusion-3.5-large"  # a folder by its whole path, or "pocket"
    base_fingerprint: str = ""  # of the base's transformer, as `fingerprint` makes it; empty: not made from one
    # The buckets that images of the training were brought to, a `flowrl.core.buckets.BucketPlan`; 0: not known.
    image_size: int = 0
    bucket_step: int = 0
    max_aspect: float = 0.0

    @property
    def trained_on(self) -> TrainedOn:
        """What whoever uses it must give it."""
        return TrainedOn(
            latent_space=self.latent_space,
            text_length=self.text_length,
            image_size=self.image_size,
            bucket_step=self.bucket_step,
            max_aspect=self.max_aspect,
        )

    def __post_init__(self) -> None:
        if not self.layers or list(self.layers) != sorted(set(self.layers)) or self.layers[0] < 0:
            raise ValueError(f"layers must be ascending block numbers from 0, got {self.layers}")
        if (
            not self.sigmas
            or list(self.sigmas) != sorted(set(self.sigmas))
            or not 0 <= self.sigmas[0] <= self.sigmas[-1] < 1
        ):
            raise ValueError(f"sigmas must be ascending noise levels in [0, 1), got {self.sigmas}")
        if any(dim < 1 for dim in self.head_dims):
            raise ValueError(f"head_dims must be positive widths, got {self.head_dims}")
        if self.activation not in _ACTIVATIONS:
            raise ValueError(f"activation must be one of {sorted(_ACTIVATIONS)}, got {self.activation!r}")
        if self.pooling not in ("mean", "attention"):
            raise ValueError(f"pooling must be mean or attention, got {self.pooling!r}")
        if self.text_length < 1:
            raise ValueError(f"text_length must be at least 1, got {self.text_length}")
        images = (self.image_size, self.bucket_step, self.max_aspect)
        if images != (0, 0, 0) and not (self.image_size > 0 and self.bucket_step > 0 and self.max_aspect >= 1):
            raise ValueError(
                f"image_size, bucket_step and max_aspect must be those of buckets, or all 0 (not known), got {images}"
            )


def sample_noise(seeds: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal noise [B, *shape] float32 on the CPU, row b from seeds[b] alone."""
    # A stream of its own: the sampler drew the sample's initial noise from the same seed.
    return keyed_noise(seeds, shape, _STREAM)


class TokenPool(nn.Module):
    """One vector of a token sequence: the mean, or the mean under learned attention (which starts as the mean)."""

    def __init__(self, width: int, kind: Literal["mean", "attention"]) -> None:
        super().__init__()
        self.query = nn.Linear(width, 1, bias=False) if kind == "attention" else None
        if self.query is not None:
            nn.init.zeros_(self.query.weight)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens [B, N, D] to [B, D]."""
        if self.query is None:
            return tokens.mean(1)
        weight = torch.softmax(self.query(tokens), 1)
        return (weight * tokens).sum(1)


class RewardHead(nn.Module):
    """Pools each tapped sequence, concatenates, and maps to one number per sample, or to a score and its spread."""

    def __init__(self, config: DiTRewardConfig, width: int) -> None:
        super().__init__()
        sources = len(config.layers) * (2 if config.text_features else 1)
        self.pools = nn.ModuleList([TokenPool(width, config.pooling) for _ in range(sources)])
        self.norm = nn.LayerNorm(sources * width) if config.feature_norm else nn.Identity()
        layers: list[nn.Module] = []
        before = sources * width
        for dim in config.head_dims:
            layers += [nn.Linear(before, dim), _ACTIVATIONS[config.activation]()]
            before = dim
        self.mlp = nn.Sequential(*layers, nn.Linear(before, 2 if config.uncertainty else 1))

    @property
    def last_bias(self) -> str:
        """The key of the bias of the outputs in the state dict."""
        return f"mlp.{len(self.mlp) - 1}.bias"

    def pool(self, taps: list[torch.Tensor]) -> torch.Tensor:
        """Tapped sequences, each [B, N_i, D], to features [B, sources * D]."""
        return torch.cat([pool(tokens) for pool, tokens in zip(self.pools, taps, strict=True)], 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features [B, F] to outputs [B, 1], or [B, 2] with uncertainty, float32; the first is the score."""
        return self.mlp(self.norm(features)).float()


class DiTRewardModel(nn.Module):
    """A diffusion transformer and a reward head; all of its work is done in `forward`, the same modules each time."""

    def __init__(self, transformer: SD3Transformer2DModel, config: DiTRewardConfig) -> None:
        super().__init__()
        if config.layers[-1] >= len(transformer.transformer_blocks):
            raise ValueError(
                f"layers {config.layers} do not exist in a transformer of "
                f"{len(transformer.transformer_blocks)} blocks; use 0 to {len(transformer.transformer_blocks) - 1}"
            )
        self.config = config
        self.transformer = transformer
        self.head = RewardHead(config, transformer.inner_dim)
        self.gradient_checkpointing = False

    def taps(
        self, latents: torch.Tensor, noise: torch.Tensor, embeds: torch.Tensor, pooled: torch.Tensor, sigma: float
    ) -> list[torch.Tensor]:
        """The tapped sequences: image tokens [B, N, D] after each chosen block, then text tokens that entered it.

        Nothing after the last chosen block is computed; the blocks' outputs are those of the transformer's own
        forward (arXiv 2606.23626 eqs. 1-3).
        """
        net = self.transformer
        dtype = net.context_embedder.weight.dtype
        noisy = ((1 - sigma) * latents.float() + sigma * noise.float()).to(dtype)
        timestep = torch.full((len(latents),), 1000 * sigma, device=latents.device, dtype=torch.float32)
        hidden = net.pos_embed(noisy).contiguous()
        temb = net.time_text_embed(timestep, pooled.to(dtype))
        context = net.context_embedder(embeds.to(dtype))
        image_taps: list[torch.Tensor] = []
        text_taps: list[torch.Tensor] = []
        for index in range(self.config.layers[-1] + 1):
            if self.config.text_features and index in self.config.layers:
                text_taps.append(context)  # entering: the transformer's last block returns no text
            block = net.transformer_blocks[index]
            if self.gradient_checkpointing and torch.is_grad_enabled():
                context, hidden = checkpoint(block, hidden, context, temb, use_reentrant=False)
            else:
                context, hidden = block(hidden_states=hidden, encoder_hidden_states=context, temb=temb)
            if index in self.config.layers:
                image_taps.append(hidden)
        return image_taps + text_taps

    def features(
        self, latents: torch.Tensor, noise: torch.Tensor, embeds: torch.Tensor, pooled: torch.Tensor, sigma: float
    ) -> torch.Tensor:
        """The pooled and concatenated features [B, F] at one noise level (arXiv 2606.23626 eq. 4)."""
        return self.head.pool(self.taps(latents, noise, embeds, pooled, sigma))

    def forward(
        self, latents: torch.Tensor, noise: torch.Tensor, embeds: torch.Tensor, pooled: torch.Tensor
    ) -> torch.Tensor:
        """Outputs [B, 1 or 2] float32 of model-scaled latents [B, C, h, w] under noise of the same shape, embeds
        [B, L, D] and pooled [B, P]; the first is the score (arXiv 2606.23626 eqs. 1-5).
        """
        levels = [self.head(self.features(latents, noise, embeds, pooled, sigma)) for sigma in self.config.sigmas]
        return levels[0] if len(levels) == 1 else torch.stack(levels).mean(0)

    def train_only(self, mode: Mode, *, lora_rank: int = 32) -> None:
        """Choose what learns beside the head: nothing, a new LoRA on the attention, or the whole transformer.

        What no score depends on (the blocks after the last tap, and the text that would enter them) never learns.
        """
        if mode not in ("frozen", "lora", "full"):
            raise ValueError(f"mode must be frozen, lora or full, got {mode!r}")
        used = [name for name, _ in self.transformer.named_parameters() if self._matters(name)]
        self.transformer.requires_grad_(False)
        if mode == "full":
            for name in used:
                self.transformer.get_parameter(name).requires_grad_(True)
        elif mode == "lora":
            layers = {name.removesuffix(".weight") for name in used}
            self.transformer.add_adapter(
                LoraConfig(
                    r=lora_rank,
                    lora_alpha=2 * lora_rank,
                    init_lora_weights="gaussian",
                    target_modules=sorted(name for name in layers if name.endswith(tuple(LORA_TARGETS))),
                )
            )

    @property
    def unused(self) -> tuple[str, ...]:
        """How the names begin of what is never computed: the blocks after the last tap, and the output layers."""
        later = range(self.config.layers[-1] + 1, int(self.transformer.config.num_layers))
        return (*(f"transformer_blocks.{index}." for index in later), *_OUTPUT)

    def leave_out_unused(self) -> None:
        """Drop what is never computed, for scoring alone: such a transformer is not one that can be saved."""
        self.transformer.transformer_blocks = self.transformer.transformer_blocks[: self.config.layers[-1] + 1]
        self.transformer.norm_out = self.transformer.proj_out = nn.Identity()

    def _matters(self, name: str) -> bool:
        """Whether a score depends on this parameter of the transformer."""
        if name.startswith(_OUTPUT):
            return False
        if not name.startswith("transformer_blocks."):
            return True
        _, index, part = name.split(".", 2)
        last = self.config.layers[-1]
        # The last tapped block's own text output enters nothing.
        return int(index) < last or (int(index) == last and not part.startswith(_TEXT_OUTPUT))
