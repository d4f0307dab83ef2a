"""The weights of open_clip's CLIP under the names that transformers gives them."""

from __future__ import annotations

import re

import torch

UNUSED = ("attn_mask",)  # the causal mask, a buffer that old files hold

_NAMES = {
    "logit_scale": "logit_scale",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # transformers spells it so
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
_TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
_IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)")


def from_open_clip(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename open_clip's tensors to those of `CLIPModel`; unknown keys keep their names.

    open_clip keeps query, key and value of a block in one matrix, and its two projections transposed.
    """
    renamed: dict[str, torch.Tensor] = {}
    for key, value in tensors.items():
        if key in UNUSED:
            continue
        block = _BLOCK.fullmatch(key)
        if block is not None:
            renamed |= _from_block(key, value, block)
        elif key in _TRANSPOSED:
            renamed[_TRANSPOSED[key]] = value.T
        else:
            renamed[_NAMES.get(key, key)] = value
    return renamed


def _from_block(key: str, value: torch.Tensor, match: re.Match[str]) -> dict[str, torch.Tensor]:
    tower = "vision_model" if match[1] else "text_model"
    layer, part, kind = f"{tower}.encoder.layers.{match[2]}", match[3], match[4]
    if part == "attn.in_proj":
        names = (f"{layer}.self_attn.{name}_proj.{kind}" for name in "qkv")
        return dict(zip(names, value.chunk(3), strict=True))
    return {f"{layer}.{_IN_BLOCK[part]}.{kind}" if part in _IN_BLOCK else key: value}
