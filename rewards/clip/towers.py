"""CLIP from its files: the towers of transformers, a tokenizer, and the cosine of an image and its text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, CLIPVisionModelWithProjection

from flowrl.base.errors import CheckpointError
from flowrl.base.weight_files import check_model_folder, read_json
from rewards.files import load_strict, read_shards
from rewards.published_files import check_tokenizer, without

WEIGHTS = "model.safetensors"  # as transformers saves a CLIP; a large one may be in shards with an index

# Buffers that files of older libraries hold; the model makes its own.
_UNUSED = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")
_ARGMAX = 2  # an eos_token_id in the configs of older libraries: the end of a text is then its greatest token


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The texts of a batch of B as tokens; each different text stands there once."""

    input_ids: torch.Tensor  # [U, L] int64, cut at or padded to the context of the model
    attention_mask: torch.Tensor  # [U, L] int64, 0 on padding
    rows: torch.Tensor  # [B] int64, which of the U is the text of each sample


class CosineModel(nn.Module):
    """The cosine [B] float32 of images [B, 3, S, S], preprocessed, and their texts."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, images: torch.Tensor, texts: Texts) -> torch.Tensor:
        image = self.clip.get_image_features(pixel_values=images.to(self.clip.dtype)).pooler_output
        text = self.clip.get_text_features(input_ids=texts.input_ids, attention_mask=texts.attention_mask).pooler_output
        return (F.normalize(image.float(), dim=-1) * F.normalize(text.float(), dim=-1)[texts.rows]).sum(-1)


def check_config(folder: Path, base: str) -> CLIPConfig:
    """The sizes in `folder`/config.json; raises CheckpointError unless they are those of a CLIP."""
    settings = read_json(folder / "config.json")
    if settings.get("model_type") != "clip":
        raise CheckpointError(
            f"{folder / 'config.json'}: expected model_type clip, got {settings.get('model_type')!r}; "
            f"copy the config.json of {base} here"
        )
    return CLIPConfig.from_dict(settings)


def check_text_folder(folder: Path, base: str) -> None:
    """Raise CheckpointError unless `folder` holds the config and the tokenizer of a CLIP, such as `base`."""
    check_config(folder, base)
    check_tokenizer(folder, ("vocab.json", "merges.txt"), base)


def check_clip_folder(folder: Path, base: str) -> None:
    """Raise CheckpointError unless `folder` holds a CLIP as transformers saves it, weights and all."""
    check_model_folder(folder, WEIGHTS.partition(".")[0])
    check_text_folder(folder, base)


def read_clip_folder(folder: Path) -> dict[str, torch.Tensor]:
    """The weights in a folder as transformers saves it, without what is no weight; raises CheckpointError."""
    return without(read_shards(folder, WEIGHTS.partition(".")[0]), _UNUSED)


def load_tokenizer(folder: Path, config: CLIPConfig, base: str) -> CLIPTokenizer:
    """The tokenizer in `folder`; raises CheckpointError when it is missing or not the one of the config's model."""
    check_tokenizer(folder, ("vocab.json", "merges.txt"), base)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    text = config.text_config
    if len(tokenizer) > text.vocab_size or text.eos_token_id not in (_ARGMAX, tokenizer.eos_token_id):
        raise CheckpointError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens and ends a text with {tokenizer.eos_token_id}, the "
            f"model has {text.vocab_size} and {text.eos_token_id}; copy the tokenizer files of {base} here"
        )
    return tokenizer


def tokenize(tokenizer: CLIPTokenizer, prompts: tuple[str, ...], length: int, device: torch.device) -> Texts:
    """The tokens of B prompts, each cut at `length` tokens with its end kept."""
    different = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
    tokens = tokenizer(list(different), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    rows = torch.tensor([different[prompt] for prompt in prompts])
    return Texts(
        input_ids=tokens["input_ids"].to(device),
        attention_mask=tokens["attention_mask"].to(device),
        rows=rows.to(device),
    )


def load_clip(config: CLIPConfig, tensors: dict[str, torch.Tensor], source: Path, dtype: torch.dtype) -> CLIPModel:
    """Both towers with these weights, in evaluation mode; raises CheckpointError when they do not fit the config."""
    with torch.device("meta"):
        clip = CLIPModel(config)
    load_strict(clip, tensors, source, dtype)
    for tower in (clip.vision_model, clip.text_model):
        tower.embeddings.position_ids = _positions(tower.embeddings.position_embedding)
    return clip.eval().requires_grad_(False)


def load_image_tower(
    config: CLIPConfig, tensors: dict[str, torch.Tensor], source: Path, dtype: torch.dtype
) -> CLIPVisionModelWithProjection:
    """The image tower alone, in evaluation mode; raises CheckpointError when the weights do not fit the config."""
    vision = config.vision_config
    vision.projection_dim = config.projection_dim  # old configs say it of the whole model alone
    with torch.device("meta"):
        tower = CLIPVisionModelWithProjection(vision)
    load_strict(tower, tensors, source, dtype)
    embeddings = tower.vision_model.embeddings
    embeddings.position_ids = _positions(embeddings.position_embedding)
    return tower.eval().requires_grad_(False)


def _positions(table: nn.Embedding) -> torch.Tensor:
    """The buffer that no file holds, so that a model built on the meta device lacks it: [1, rows of table] int64."""
    return torch.arange(table.num_embeddings)[None]
