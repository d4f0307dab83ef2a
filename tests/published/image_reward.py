"""ImageReward: THUDM/ImageReward's two files and the tokenizer of bert-base-uncased, small and random."""

from __future__ import annotations

import json
import string
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import BertTokenizer

from tests.published.clip_family import head_shapes, random_tensors

WORDS = ("a", "cat", "red", "circle", "on", "sand")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of the two encoders."""

    image_size: int = 32
    patch: int = 8
    width: int = 128
    layers: int = 2
    mlp: int = 96
    vocab: int = 100
    text_width: int = 48
    text_layers: int = 2
    text_heads: int = 3
    text_mlp: int = 80
    positions: int = 40


TINY = Sizes()
LARGE = Sizes(
    image_size=224,
    patch=16,
    width=1024,
    layers=24,
    mlp=4096,
    vocab=30524,
    text_width=768,
    text_layers=12,
    text_heads=12,
    text_mlp=3072,
    positions=512,
)


def published_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """The tensors of ImageReward.pt by name, with those that scoring does not use."""
    width, text = sizes.width, sizes.text_width
    shapes: dict[str, tuple[int, ...]] = {
        "blip.visual_encoder.cls_token": (1, 1, width),
        "blip.visual_encoder.pos_embed": (1, (sizes.image_size // sizes.patch) ** 2 + 1, width),
        "blip.text_encoder.embeddings.word_embeddings.weight": (sizes.vocab, text),
        "blip.text_encoder.embeddings.position_embeddings.weight": (sizes.positions, text),
        **_affine("blip.visual_encoder.patch_embed.proj", (width, 3, sizes.patch, sizes.patch)),
        **_affine("blip.visual_encoder.norm", (width,)),
        **_affine("blip.text_encoder.embeddings.LayerNorm", (text,)),
        **_affine("blip.vision_proj", (256, width)),
        **_affine("blip.text_proj", (256, text)),
    }
    for layer in range(sizes.layers):
        block = f"blip.visual_encoder.blocks.{layer}"
        shapes |= _affine(f"{block}.norm1", (width,)) | _affine(f"{block}.norm2", (width,))
        shapes |= _affine(f"{block}.attn.qkv", (3 * width, width)) | _affine(f"{block}.attn.proj", (width, width))
        shapes |= _affine(f"{block}.mlp.fc1", (sizes.mlp, width)) | _affine(f"{block}.mlp.fc2", (width, sizes.mlp))
    for layer in range(sizes.text_layers):
        block = f"blip.text_encoder.encoder.layer.{layer}"
        for attention, source in (("attention", text), ("crossattention", width)):
            shapes |= _affine(f"{block}.{attention}.self.query", (text, text))
            shapes |= _affine(f"{block}.{attention}.self.key", (text, source))
            shapes |= _affine(f"{block}.{attention}.self.value", (text, source))
            shapes |= _affine(f"{block}.{attention}.output.dense", (text, text))
            shapes |= _affine(f"{block}.{attention}.output.LayerNorm", (text,))
        shapes |= _affine(f"{block}.intermediate.dense", (sizes.text_mlp, text))
        shapes |= _affine(f"{block}.output.dense", (text, sizes.text_mlp))
        shapes |= _affine(f"{block}.output.LayerNorm", (text,))
    return shapes | head_shapes("mlp.layers.", text)


def write_image_reward(folder: Path) -> dict[str, object]:
    """ImageReward.pt, a plain dict of tensors; med_config.json, whose encoder_width nobody reads; the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = random_tensors(published_shapes(TINY), seed=41)
    tensors["blip.text_encoder.embeddings.position_ids"] = torch.arange(TINY.positions)[None]
    torch.save(tensors, folder / "ImageReward.pt")
    (folder / "med_config.json").write_text(json.dumps(med_config(TINY)), encoding="utf-8")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
    pieces = dict.fromkeys([*special, *letters, *WORDS, *string.digits, ".", ","])
    tokenizer = BertTokenizer(vocab={piece: number for number, piece in enumerate(pieces)})
    assert len(tokenizer) <= TINY.vocab - 2  # upstream added two tokens that no text holds
    tokenizer.save_pretrained(folder)
    return {"path": str(folder)}


def med_config(sizes: Sizes) -> dict[str, object]:
    """The config of the text encoder."""
    return {
        "architectures": ["BertModel"],
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": sizes.text_width,
        "initializer_range": 0.02,
        "intermediate_size": sizes.text_mlp,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": sizes.positions,
        "model_type": "bert",
        "num_attention_heads": sizes.text_heads,
        "num_hidden_layers": sizes.text_layers,
        "pad_token_id": 0,
        "type_vocab_size": 2,
        "vocab_size": sizes.vocab,
        "encoder_width": 768,
        "add_cross_attention": True,
    }


def _affine(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
