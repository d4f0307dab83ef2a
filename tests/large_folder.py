"""Folders in the layouts of SD3.5, DiT-Reward and HPSv3 with random weights, of a size that is worth measuring."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, SD3Transformer2DModel
from transformers import T5Config, T5EncoderModel

from flowrl.base.empty_module import fill
from flowrl.base.fingerprint import fingerprint
from flowrl.models.sd3 import SD3
from flowrl.pocket.text import JOINT_DIM
from flowrl.pocket.vision_language import new_config, new_tokenizer
from rewards.dit_reward import layout
from rewards.dit_reward.model import DiTRewardConfig, DiTRewardModel
from rewards.hpsv3.layout import save as save_hpsv3
from rewards.hpsv3.model import HPSv3Model
from tests import tiny


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How wide and deep the networks are."""

    heads: int = 24  # of 64 numbers each
    layers: int = 8
    channels: int = 128  # of the VAE's first level
    text_layers: int = 24
    language_width: int = 2048
    language_layers: int = 10


def write(folder: Path, sizes: Sizes) -> Path:
    """A pipeline, its transformer in shards with an index."""
    tiny.write_folder(folder)
    for part in ("transformer", "vae", "text_encoder_3"):
        for file in (folder / part).glob("*.safetensors"):
            file.unlink()
    settings = json.loads((folder / "transformer" / "config.json").read_text())
    settings |= {
        "num_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "attention_head_dim": 64,
        "caption_projection_dim": 64 * sizes.heads,
        "pos_embed_max_size": 64,
        "sample_size": 64,
    }
    with torch.device("meta"):
        transformer = SD3Transformer2DModel.from_config(settings)
    _fill(transformer, torch.bfloat16).save_pretrained(folder / "transformer", max_shard_size="200MB")
    settings = json.loads((folder / "vae" / "config.json").read_text())
    widths = [sizes.channels * factor for factor in (1, 2, 4, 4)]
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(settings | {"block_out_channels": widths, "layers_per_block": 2})
    _fill(vae, torch.float32).save_pretrained(folder / "vae", max_shard_size="100MB")
    config = T5Config.from_pretrained(folder / "text_encoder_3")
    config.num_layers, config.d_ff, config.d_kv, config.num_heads = sizes.text_layers, 64 * JOINT_DIM * 2, 64, 16
    with init_empty_weights(include_buffers=False):
        text = T5EncoderModel(config)
    _fill(text, torch.bfloat16).save_pretrained(folder / "text_encoder_3", max_shard_size="50MB")
    return folder


def write_dit_reward(folder: Path, policy: Path) -> Path:
    """A DiT-Reward with a frozen backbone, which is the policy's."""
    settings = json.loads((policy / "transformer" / "config.json").read_text())
    config = DiTRewardConfig(
        text_length=28,
        layers=(0, settings["num_layers"] - 1),
        latent_space=SD3.latent_space(policy),
        base=str(policy),
        base_fingerprint=fingerprint(policy / "transformer", layout.STEM),
    )
    with torch.device("meta"):
        model = DiTRewardModel(SD3Transformer2DModel.from_config(settings), config)
    _fill(model.head, torch.bfloat16)
    layout.save(model, folder, dtype=torch.bfloat16, whole=False)
    return folder


def write_hpsv3(folder: Path, sizes: Sizes) -> Path:
    """An HPSv3 in the published layout."""
    tokenizer = new_tokenizer()
    config = new_config(tokenizer)
    text = config.text_config
    text.hidden_size = config.vision_config.hidden_size = sizes.language_width
    text.intermediate_size, text.num_hidden_layers = 4 * sizes.language_width, sizes.language_layers
    text.num_attention_heads = text.num_key_value_heads = sizes.language_width // 64
    text.layer_types = ["full_attention"] * sizes.language_layers
    text.rope_parameters["mrope_section"] = [8, 12, 12]
    with init_empty_weights(include_buffers=False):
        model = HPSv3Model(config)
    _fill(model, torch.bfloat16)
    words = torch.zeros(text.vocab_size, text.hidden_size)
    save_hpsv3(model, tokenizer, folder, area=4096, lm_head=words, dtype=torch.bfloat16)
    return folder


def size_of(*folders: Path) -> int:
    """The bytes of the weights in folders: one copy."""
    return sum(file.stat().st_size for folder in folders for file in folder.glob("*.safetensors"))


def _fill(module: Any, dtype: torch.dtype) -> Any:
    """The empty module with random weights."""
    draw = torch.Generator().manual_seed(0)
    shapes = {name: value.shape for name, value in module.state_dict().items()}
    weights = ((name, torch.randn(shape, generator=draw, dtype=dtype).mul_(0.02)) for name, shape in shapes.items())
    fill(module, weights, torch.device("cpu"))
    return module
