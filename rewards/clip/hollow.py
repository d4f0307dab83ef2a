"""Rewards made of a CLIP without weights, by which `flowrl plan` counts what they take."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel, CLIPVisionModelWithProjection

from flowrl.base.dtypes import torch_dtype
from flowrl.types import HollowCall, HollowReward
from rewards.clip.cosine import HUGE
from rewards.clip.towers import CosineModel, Texts, check_config

LARGE = "openai/clip-vit-large-patch14"


def _tower(width: int, layers: int, heads: int) -> dict[str, int]:
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    return {**sizes, "num_attention_heads": heads}


# As the config.json files on huggingface.co have them.
_PUBLISHED = {
    HUGE: {
        "projection_dim": 1024,
        "text_config": _tower(1024, 24, 16),
        "vision_config": {**_tower(1280, 32, 16), "image_size": 224, "patch_size": 14},
    },
    LARGE: {
        "projection_dim": 768,
        "text_config": _tower(768, 12, 12),
        "vision_config": {**_tower(1024, 24, 16), "image_size": 224, "patch_size": 14},
    },
}


def hollow_cosine(path: str, published: str, dtype: str, batch_size: int) -> HollowReward:
    """Both towers of the CLIP in the folder, or of the `published` one where there is none yet; texts all differ."""
    config = _config(path, published)
    length = config.text_config.max_position_embeddings
    with torch.device("meta"):
        model = CosineModel(CLIPModel(config)).to(torch_dtype(dtype))
        images = _images(config, batch_size)
    texts = Texts(
        input_ids=torch.zeros(batch_size, length, dtype=torch.int64),
        attention_mask=torch.ones(batch_size, length, dtype=torch.int64),
        rows=torch.arange(batch_size),
    )
    return HollowReward(samples=batch_size, calls=(HollowCall(module=model, run=model, inputs=(images, texts)),))


def hollow_tower(
    path: str, published: str, dtype: str, batch_size: int
) -> tuple[CLIPVisionModelWithProjection, torch.Tensor]:
    """The image tower alone, and the images that it reads, on the meta device."""
    config = _config(path, published)
    config.vision_config.projection_dim = config.projection_dim
    with torch.device("meta"):
        return CLIPVisionModelWithProjection(config.vision_config).to(torch_dtype(dtype)), _images(config, batch_size)


def _config(path: str, published: str) -> CLIPConfig:
    if (Path(path) / "config.json").is_file():
        return check_config(Path(path), published)
    return CLIPConfig.from_dict(_PUBLISHED[published])


def _images(config: CLIPConfig, batch_size: int) -> torch.Tensor:
    side = config.vision_config.image_size
    return torch.empty(batch_size, 3, side, side)
