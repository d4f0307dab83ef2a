"""The network of HPSv3 (arXiv 2508.03789): Qwen2-VL without its language head, and a two-number head at one token."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, Qwen2VLConfig, Qwen2VLModel

from rewards.hpsv3.template import IMAGE_TOKEN, REWARD_TOKEN, render

# The published file has the layout of transformers 4.45; the model here that of 5.x (a bare Qwen2VLModel).
_RENAME = (("visual.", "backbone.visual."), ("model.", "backbone.language_model."), ("rm_head.", "rm_head."))
HEAD = "rm_head."  # how the names of the head's weights begin
_Value = TypeVar("_Value")
DROPPED = "lm_head.weight"  # of the language model; not used by the reward


@dataclass(frozen=True, kw_only=True)
class ChatBatch:
    """B rendered chats as tokens, padded on the right to the longest."""

    input_ids: torch.Tensor  # [B, L] int64
    attention_mask: torch.Tensor  # [B, L] int64, 0 on padding
    image_mask: torch.Tensor  # [B, L] int64, 1 on image tokens
    reward_position: torch.Tensor  # [B] int64

    def to(self, device: torch.device) -> ChatBatch:
        """The same chats with all tensors on `device`."""
        return ChatBatch(**{field.name: vars(self)[field.name].to(device) for field in fields(self)})


def tokenize(tokenizer: PreTrainedTokenizerBase, prompts: tuple[str, ...], num_image_tokens: int) -> ChatBatch:
    """Render and tokenize the chats of prompts.

    Raises ValueError when a prompt holds one of the template's own special tokens.
    """
    encoded = tokenizer(
        [render(prompt, num_image_tokens) for prompt in prompts],
        padding=True,
        padding_side="right",
        return_tensors="pt",
    )
    ids = encoded["input_ids"]
    is_reward = ids == tokenizer.convert_tokens_to_ids(REWARD_TOKEN)
    is_image = ids == tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    wrong = (is_reward.sum(1) != 1) | (is_image.sum(1) != num_image_tokens)
    if wrong.any():
        prompt = prompts[int(wrong.nonzero()[0, 0])]
        raise ValueError(f"hpsv3: a prompt must not hold {REWARD_TOKEN} or {IMAGE_TOKEN}, got {prompt!r}")
    return ChatBatch(
        input_ids=ids,
        attention_mask=encoded["attention_mask"],
        image_mask=is_image.long(),
        reward_position=is_reward.long().argmax(1),
    )


def new_head(width: int) -> nn.Sequential:
    """The published reward head, untrained: hidden states [.., width] to (mu, log sigma)."""
    return nn.Sequential(
        nn.Linear(width, 1024), nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)
    )


class HPSv3Model(nn.Module):
    """Qwen2-VL and the published reward head."""

    def __init__(self, config: Qwen2VLConfig) -> None:
        super().__init__()
        self.backbone = Qwen2VLModel(config)
        self.rm_head = new_head(config.text_config.hidden_size)

    def hidden_states(self, chats: ChatBatch, patches: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        """The normed last hidden states [B, L, D] of the language model."""
        # Without a cache of positions from an earlier batch: each call must depend on its own input alone.
        self.backbone.rope_deltas = None
        return self.backbone(
            input_ids=chats.input_ids,
            attention_mask=chats.attention_mask,
            mm_token_type_ids=chats.image_mask,
            pixel_values=patches,
            image_grid_thw=grid,
            use_cache=False,
        ).last_hidden_state

    def read(self, hidden: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """(mu, log sigma) [B, 2] float32 from hidden states [B, L, D] at positions [B]; the head runs in float32."""
        row = hidden[torch.arange(len(hidden), device=hidden.device), position]
        with torch.autocast(hidden.device.type, enabled=False):
            return self.rm_head(row.float())

    def forward(self, chats: ChatBatch, patches: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        """(mu, log sigma) [B, 2] float32 of B chats and their images."""
        return self.read(self.hidden_states(chats, patches, grid), chats.reward_position)


def from_published(tensors: Mapping[str, _Value]) -> dict[str, _Value]:
    """Whatever there is by the keys of HPSv3.safetensors, by those of `HPSv3Model`; unknown keys keep their names."""
    renamed = {}
    for key, value in tensors.items():
        if key == DROPPED:
            continue
        # Newer files say model.visual and model.language_model.
        old = re.sub(r"^model\.(visual\.)", r"\1", re.sub(r"^model\.language_model\.", "model.", key))
        prefix = next((pair for pair in _RENAME if old.startswith(pair[0])), None)
        renamed[prefix[1] + old[len(prefix[0]) :] if prefix else key] = value
    return renamed


def to_published(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse of `from_published`, without the language head."""
    renamed = {}
    for key, value in tensors.items():
        prefix = next(pair for pair in _RENAME if key.startswith(pair[1]))
        renamed[prefix[0] + key[len(prefix[1]) :]] = value
    return renamed
