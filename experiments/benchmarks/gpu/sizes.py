"""The shapes that are measured: those of the published models, and tiny ones that a CPU goes through in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flowrl.config import ModelSection, RolloutSection
from flowrl.core.latent_space import factor_of
from flowrl.models.sd35_published import CLIP_TOKENS, PUBLISHED
from flowrl.plan.policy_measure import AdapterShape
from rewards.dit_reward.model import DiTRewardConfig
from rewards.hpsv3.hollow import PUBLISHED_TEXT, PUBLISHED_VISION
from rewards.hpsv3.preprocess import PatchSpec

_LARGE = PUBLISHED["stabilityai/stable-diffusion-3.5-large"]
_MODEL, _ROLLOUT = ModelSection(), RolloutSection()


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Samples whose loss is computed at once, and whether activations are computed again in the backward pass."""

    samples: int
    checkpointing: bool

    @property
    def name(self) -> str:
        """What the case is called that measures it, and the one that computes it."""
        again = "checkpointed" if self.checkpointing else "all activations kept"
        return f"loss and backward, {self.samples} samples, {again}"


@dataclass(frozen=True, kw_only=True)
class LanguageSizes:
    """A Qwen2-VL and the chats that it reads."""

    text: Mapping[str, Any]  # text_config of its config.json
    vision: Mapping[str, Any]
    chat_tokens: int  # of one chat, image tokens included
    patches: PatchSpec


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Everything that a shape follows from.

    Example: of `REAL` a latent is [16, 64, 64] and a text condition [1, 333, 4096].
    """

    transformer: Mapping[str, Any]  # config.json
    vae: Mapping[str, Any]
    image_size: int
    text_length: int  # tokens, of CLIP and T5 together
    adapter: AdapterShape
    reward: DiTRewardConfig
    language: LanguageSizes
    matmul: int  # rows and columns of the matrices
    guidance_scale: float
    group_size: int
    sampler_steps: int
    samples_per_forward: tuple[int, ...]  # each is also the size of a micro-batch, so that one plan serves both
    micro_batches: tuple[MicroBatch, ...]
    group_update: MicroBatch  # one of them, by which a whole group is trained on
    reward_batches: tuple[int, ...]
    replayed: tuple[int, ...]  # forward sizes of the replay; the first is the rollout's
    compiler: str  # backend of torch.compile
    repeats: int

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Of one sample."""
        side = self.image_size // factor_of(self.vae)
        return int(self.vae["latent_channels"]), side, side


REAL = Sizes(
    transformer=_LARGE.transformer,
    vae=_LARGE.vae,
    image_size=512,
    text_length=CLIP_TOKENS + 256,
    adapter=AdapterShape(rank=_MODEL.lora_rank, alpha=_MODEL.lora_alpha, targets=tuple(_MODEL.lora_targets)),
    reward=DiTRewardConfig(text_length=CLIP_TOKENS + 256),
    language=LanguageSizes(
        text=PUBLISHED_TEXT,
        vision=PUBLISHED_VISION,
        chat_tokens=806,  # a prompt of 20 words in the published template
        patches=PatchSpec(),
    ),
    matmul=8192,
    guidance_scale=_ROLLOUT.guidance_scale,
    group_size=16,
    sampler_steps=10,
    samples_per_forward=(4, 16),
    micro_batches=(
        MicroBatch(samples=1, checkpointing=False),
        MicroBatch(samples=4, checkpointing=False),
        MicroBatch(samples=8, checkpointing=False),
        MicroBatch(samples=4, checkpointing=True),
        MicroBatch(samples=16, checkpointing=True),
    ),
    group_update=MicroBatch(samples=4, checkpointing=False),
    reward_batches=(1, 16),
    replayed=(4, 2, 1),
    compiler="inductor",
    repeats=3,
)

SMALL = Sizes(
    transformer={
        **_LARGE.transformer,
        "num_layers": 2,
        "num_attention_heads": 2,
        "caption_projection_dim": 128,
        "joint_attention_dim": 96,
        "pooled_projection_dim": 80,
        "pos_embed_max_size": 8,
    },
    vae={**_LARGE.vae, "block_out_channels": [8, 8, 8, 8], "norm_num_groups": 4, "layers_per_block": 1},
    image_size=64,
    text_length=12,
    adapter=AdapterShape(rank=4, alpha=8, targets=REAL.adapter.targets),
    reward=DiTRewardConfig(text_length=12, layers=(0, 1), head_dims=(16,)),
    language=LanguageSizes(
        text={
            **REAL.language.text,
            "vocab_size": 200,
            "hidden_size": 128,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
        },
        vision={"depth": 1, "embed_dim": 64, "hidden_size": 128, "num_heads": 2, "mlp_ratio": 2},
        chat_tokens=24,
        patches=PatchSpec(area=56 * 56),
    ),
    matmul=64,
    guidance_scale=REAL.guidance_scale,
    group_size=4,
    sampler_steps=3,
    samples_per_forward=(2, 4),
    micro_batches=(
        MicroBatch(samples=2, checkpointing=False),
        MicroBatch(samples=2, checkpointing=True),
        MicroBatch(samples=4, checkpointing=True),
    ),
    group_update=MicroBatch(samples=2, checkpointing=False),
    reward_batches=(1, 2),
    replayed=(2, 1),
    compiler="eager",  # traces as the real one does, and compiles nothing
    repeats=2,
)
