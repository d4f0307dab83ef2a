"""ImageReward (arXiv 2304.05977): BLIP's image tower, a text encoder that looks at the image, and a linear head."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from transformers import BertTokenizer, BlipTextConfig, BlipVisionConfig
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from flowrl.base.dtypes import torch_dtype
from flowrl.base.errors import CheckpointError
from flowrl.base.weight_files import read_json
from flowrl.reward_protocols import NeededFiles
from flowrl.types import HollowCall, HollowReward, RewardInput, TrainedOn
from rewards.batch_inputs import pixels_of
from rewards.clip.preprocess import crop_pixels
from rewards.files import load_strict
from rewards.linear_head import LinearHead
from rewards.published_files import check_tokenizer, check_torch_file, published_folder, read_torch_file, without

WEIGHTS = "ImageReward.pt"
TEXT_CONFIG = "med_config.json"
MAX_TOKENS = 35  # published
# Of BLIP's contrastive training, and a buffer; scoring uses none of them.
UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")
# The mean and the deviation of the raw scores, published as constants of the code.
_MEAN = 0.16717362830052426
_STD = 1.0333394966054072
_BASE = "bert-base-uncased"
_HEAD_WIDTH = 64  # of attention in BLIP's image towers, base and large
# The sizes of the one checkpoint: BLIP's large image tower, and med_config.json.
_VISION = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
# From the file to the modules below; in this order, since one name is part of another.
_RENAME = (
    ("blip.text_encoder.", "text."),
    ("mlp.layers.", "head.layers."),
    ("blip.visual_encoder.cls_token", "vision.embeddings.class_embedding"),
    ("blip.visual_encoder.pos_embed", "vision.embeddings.position_embedding"),
    ("blip.visual_encoder.patch_embed.proj.", "vision.embeddings.patch_embedding."),
    ("blip.visual_encoder.norm.", "vision.post_layernorm."),
    ("blip.visual_encoder.blocks.", "vision.encoder.layers."),
)
_RENAME_IN_BLOCK = (
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".attn.qkv.", ".self_attn.qkv."),
    (".attn.proj.", ".self_attn.projection."),
)


def from_published(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the keys of ImageReward.pt to those of `ImageRewardModel`; unknown keys keep their names."""
    renamed = {}
    for key, value in without(tensors, UNUSED).items():
        prefix = next((pair for pair in _RENAME if key.startswith(pair[0])), None)
        new = prefix[1] + key[len(prefix[0]) :] if prefix else key
        if new.startswith("vision.encoder.layers."):
            for old, its in _RENAME_IN_BLOCK:
                new = new.replace(old, its)
        renamed[new] = value
    return renamed


class ImageRewardModel(nn.Module):
    """Scores [B] float32 of images [B, 3, S, S], preprocessed, and texts [B, L]; standardised as published."""

    def __init__(self, vision: BlipVisionConfig, text: BlipTextConfig) -> None:
        super().__init__()
        self.vision = BlipVisionModel(vision)
        self.text = BlipTextModel(text, add_pooling_layer=False)
        self.head = LinearHead(text.hidden_size)

    def forward(self, images: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        # Each text token attends to every patch, so no mask for those; among themselves texts attend both ways.
        patches = self.vision(pixel_values=images).last_hidden_state
        hidden = self.text(
            input_ids=input_ids, attention_mask=attention_mask, encoder_hidden_states=patches
        ).last_hidden_state
        return (self.head(hidden[:, 0]) - _MEAN) / _STD


def vision_config(tensors: dict[str, torch.Tensor], source: Path) -> BlipVisionConfig:
    """The sizes of the image tower, read off its weights, since no published file says them.

    `tensors` are under the names of `ImageRewardModel`. Raises CheckpointError when they hold no such tower.
    """
    blocks = {key.split(".")[3] for key in tensors if key.startswith("vision.encoder.layers.")}
    try:
        width, _, patch, _ = tensors["vision.embeddings.patch_embedding.weight"].shape
        positions = tensors["vision.embeddings.position_embedding"].shape[1]
        intermediate = len(tensors["vision.encoder.layers.0.mlp.fc1.weight"])
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(f"{source}: has no image tower of BLIP ({error}); copy {WEIGHTS} again") from None
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=intermediate,
        num_hidden_layers=len(blocks),
        num_attention_heads=max(1, width // _HEAD_WIDTH),
        image_size=patch * math.isqrt(positions - 1),
        patch_size=patch,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    )


def text_config(folder: Path, image_width: int) -> BlipTextConfig:
    """The sizes of the text encoder by `folder`/med_config.json; raises CheckpointError when one is missing."""
    settings = read_json(folder / TEXT_CONFIG)
    try:
        return BlipTextConfig(
            vocab_size=settings["vocab_size"],
            hidden_size=settings["hidden_size"],
            encoder_hidden_size=image_width,  # not the file's encoder_width, which is that of BLIP's base model
            intermediate_size=settings["intermediate_size"],
            num_hidden_layers=settings["num_hidden_layers"],
            num_attention_heads=settings["num_attention_heads"],
            max_position_embeddings=settings["max_position_embeddings"],
            hidden_act=settings["hidden_act"],
            layer_norm_eps=settings["layer_norm_eps"],
            pad_token_id=settings["pad_token_id"],
            is_decoder=True,  # it has cross-attention; it is called as an encoder
        )
    except KeyError as error:
        raise CheckpointError(f"{folder / TEXT_CONFIG}: has no {error}; copy it again") from None


def load(folder: Path, dtype: torch.dtype) -> tuple[ImageRewardModel, BertTokenizer]:
    """The model in evaluation mode with float32 head, and its tokenizer; raises CheckpointError."""
    check_folder(folder)
    tensors = from_published(read_torch_file(folder / WEIGHTS))
    vision = vision_config(tensors, folder / WEIGHTS)
    text = text_config(folder, vision.hidden_size)
    tokenizer = BertTokenizer.from_pretrained(folder)
    if len(tokenizer) > text.vocab_size or tokenizer.pad_token_id != text.pad_token_id:
        raise CheckpointError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens and pads with {tokenizer.pad_token_id}, "
            f"{TEXT_CONFIG} says {text.vocab_size} and {text.pad_token_id}; copy the tokenizer files of {_BASE} here"
        )
    with torch.device("meta"):
        model = ImageRewardModel(vision, text)
    load_strict(model, tensors, folder / WEIGHTS, dtype)
    model.text.embeddings.position_ids = torch.arange(text.max_position_embeddings)[None]  # in no file, so still meta
    head = {key.removeprefix("head."): value.float() for key, value in tensors.items() if key.startswith("head.")}
    model.head.load_state_dict(head, assign=True)  # float32 whatever the rest is
    return model.eval().requires_grad_(False), tokenizer


def check_folder(folder: Path) -> None:
    """Raise CheckpointError, naming the file, unless `folder` holds all that `load` reads."""
    check_torch_file(folder / WEIGHTS)
    text_config(folder, 1)
    check_tokenizer(folder, ("vocab.txt",), _BASE)


class ImageReward:
    """Scores images with an ImageReward folder, about -2 to 2; fits `flowrl.reward_protocols.ShardableReward`.

    `path` is a copy of THUDM/ImageReward, ImageReward.pt and med_config.json, with the tokenizer files of
    bert-base-uncased. Published: layout, constants, 35 tokens, the first text position, torchvision's crop.
    Raises CheckpointError when the folder cannot be loaded.
    """

    name = "image_reward"
    input_kind: Literal["latent", "pixel"] = "pixel"
    latent_space: str | None = None

    def __init__(self, path: str, device: str = "cpu", dtype: str = "float32", batch_size: int = 16) -> None:
        model, self.tokenizer = load(published_folder(path, WEIGHTS, self.name), torch_dtype(dtype))
        self.image_size = int(model.vision.config.image_size)
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.module: torch.nn.Module = model.to(self.device)

    @staticmethod
    def preflight(path: str) -> TrainedOn | None:
        """None: it reads no latents; raises CheckpointError when the files in `path` are not whole."""
        check_folder(published_folder(path, WEIGHTS, ImageReward.name))
        return None

    @staticmethod
    def needs(path: str) -> tuple[NeededFiles, ...]:
        """The folder `path`."""
        return (NeededFiles(option="path", path=Path(path)),)

    @staticmethod
    def hollow(dtype: str, batch_size: int) -> HollowReward:
        """The network in the published sizes."""
        vision = BlipVisionConfig(**_VISION, image_size=224, patch_size=16, hidden_act="gelu")
        text = BlipTextConfig(
            **_TEXT, vocab_size=30_524, encoder_hidden_size=1024, max_position_embeddings=512, is_decoder=True
        )
        with torch.device("meta"):
            model = ImageRewardModel(vision, text).to(torch_dtype(dtype))
            images = torch.empty(batch_size, 3, vision.image_size, vision.image_size, dtype=torch_dtype(dtype))
        model.head.float()
        tokens = torch.ones(batch_size, MAX_TOKENS, dtype=torch.int64)
        call = HollowCall(module=model, run=model, inputs=(images, tokens, tokens))
        return HollowReward(samples=batch_size, calls=(call,))

    def __call__(self, batch: RewardInput) -> torch.Tensor:
        """Scores [B] float32 of pixels [B, 3, H, W] in [0, 1], with gradient to the pixels where they ask for one.

        Raises ValueError when the batch has no pixels.
        """
        images = crop_pixels(pixels_of(batch, self.name, self.device), self.image_size, "torchvision")
        tokens = self.tokenizer(
            list(batch.prompts), padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        ).to(self.device)
        scores: torch.Tensor = self.module(images, tokens["input_ids"], tokens["attention_mask"])
        return scores
