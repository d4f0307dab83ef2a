"""HPSv3 without weights, by which `flowrl plan` counts what it takes."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import Qwen2VLConfig

from flowrl.base.dtypes import torch_dtype
from flowrl.base.embedded import folder_of
from flowrl.types import HollowCall, HollowReward, SampleShapes
from rewards.hpsv3.layout import open_folder
from rewards.hpsv3.model import HPSv3Model, tokenize
from rewards.hpsv3.preprocess import PatchSpec

_PROMPT = "a large red circle on sand " * 4
_CHAT = 550  # tokens of the published template around a prompt of 20 words, without those of the image
# config.json of Qwen2-VL-7B-Instruct; the published HPSv3.safetensors has embeddings of the tokens in use alone.
PUBLISHED_TEXT: dict[str, Any] = {
    "vocab_size": 151_658,
    "hidden_size": 3584,
    "intermediate_size": 18_944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
PUBLISHED_VISION = {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16, "mlp_ratio": 4}


def hollow_hpsv3(path: str, dtype: str, batch_size: int, shapes: SampleShapes) -> HollowReward:
    """The reward of the folder, or of the published sizes where there is none yet."""
    folder = folder_of(path, "hpsv3")
    if folder.is_dir():
        stored = open_folder(folder)
        model, spec = stored.model, stored.spec
        tokens = spec.num_tokens(*shapes.pixels[1:])
        length = tokenize(stored.tokenizer, (_PROMPT,), tokens).input_ids.shape[1]
    else:
        with init_empty_weights(include_buffers=False):
            model = HPSv3Model(Qwen2VLConfig(text_config=dict(PUBLISHED_TEXT), vision_config=dict(PUBLISHED_VISION)))
        spec = PatchSpec()
        length = _CHAT + spec.num_tokens(*shapes.pixels[1:])
    model.backbone.to(torch_dtype(dtype))  # the head stays float32
    height, width = spec.resized(*shapes.pixels[1:])
    rows, columns = height // spec.patch_size, width // spec.patch_size
    grid = torch.tensor([[1, rows, columns]]).expand(batch_size, 3)
    embeddings = model.backbone.language_model.embed_tokens
    patch = 3 * spec.temporal_patch_size * spec.patch_size**2
    with torch.device("meta"):
        patches = torch.empty(batch_size * rows * columns, patch)
        embeds = torch.empty(batch_size, length, embeddings.embedding_dim, dtype=torch_dtype(dtype))
    positions = torch.arange(length).expand(3, batch_size, length)  # of time, rows and columns

    def run(patches: torch.Tensor, embeds: torch.Tensor) -> torch.Tensor:
        """As `HPSv3Model.forward`, but that numbers decide nothing: where the image's tokens stand is left open."""
        image = model.backbone.visual(patches.to(embeds.dtype), grid_thw=grid)
        hidden = model.backbone.language_model(inputs_embeds=embeds, position_ids=positions, use_cache=False)
        del image
        return model.read(hidden.last_hidden_state, torch.full((batch_size,), length - 1))

    return HollowReward(samples=batch_size, calls=(HollowCall(module=model, run=run, inputs=(patches, embeds)),))
