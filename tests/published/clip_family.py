"""Rewards on CLIP: HPSv2 in open_clip's layout, PickScore and CLIPScore in transformers', the aesthetic head's own.

Names, shapes and nesting are the published ones, at sizes that run in milliseconds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import CLIPTokenizer

END = "<|endoftext|>"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of a CLIP; the defaults are small ones with the proportions of none."""

    image_size: int = 28
    patch: int = 7
    width: int = 32
    layers: int = 2
    heads: int = 2
    mlp: int = 64
    text_width: int = 24
    text_layers: int = 2
    text_heads: int = 3
    text_mlp: int = 48
    context: int = 20
    vocab: int = 518
    embed: int = 16


TINY = Sizes()
HUGE = Sizes(
    image_size=224,
    patch=14,
    width=1280,
    layers=32,
    heads=16,
    mlp=5120,
    text_width=1024,
    text_layers=24,
    text_heads=16,
    text_mlp=4096,
    context=77,
    vocab=49408,
    embed=1024,
)


def clip_config(sizes: Sizes, *, eos: int, activation: str) -> dict[str, object]:
    """The config.json of a CLIP as transformers has it."""
    return {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "projection_dim": sizes.embed,
        "logit_scale_init_value": 2.6592,
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": sizes.width,
            "intermediate_size": sizes.mlp,
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": sizes.heads,
            "image_size": sizes.image_size,
            "patch_size": sizes.patch,
            "hidden_act": activation,
        },
        "text_config": {
            "model_type": "clip_text_model",
            "hidden_size": sizes.text_width,
            "intermediate_size": sizes.text_mlp,
            "num_hidden_layers": sizes.text_layers,
            "num_attention_heads": sizes.text_heads,
            "max_position_embeddings": sizes.context,
            "vocab_size": sizes.vocab,
            "hidden_act": activation,
            "bos_token_id": sizes.vocab - 2,
            "eos_token_id": eos,
        },
    }


def open_clip_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """The tensors of open_clip's CLIP, by name."""
    width, text = sizes.width, sizes.text_width
    shapes: dict[str, tuple[int, ...]] = {
        "logit_scale": (),
        "positional_embedding": (sizes.context, text),
        "text_projection": (text, sizes.embed),
        "token_embedding.weight": (sizes.vocab, text),
        "visual.class_embedding": (width,),
        "visual.positional_embedding": ((sizes.image_size // sizes.patch) ** 2 + 1, width),
        "visual.proj": (width, sizes.embed),
        "visual.conv1.weight": (width, 3, sizes.patch, sizes.patch),
    }
    for norm, size in (("ln_final", text), ("visual.ln_pre", width), ("visual.ln_post", width)):
        shapes |= {f"{norm}.weight": (size,), f"{norm}.bias": (size,)}
    towers = (("visual.", sizes.layers, width, sizes.mlp), ("", sizes.text_layers, text, sizes.text_mlp))
    for prefix, layers, size, mlp in towers:
        for layer in range(layers):
            block = f"{prefix}transformer.resblocks.{layer}"
            shapes |= {f"{block}.attn.in_proj_weight": (3 * size, size), f"{block}.attn.in_proj_bias": (3 * size,)}
            linear = {"attn.out_proj": (size, size), "mlp.c_fc": (mlp, size), "mlp.c_proj": (size, mlp)}
            for name, shape in linear.items():
                shapes |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
            for norm in ("ln_1", "ln_2"):
                shapes |= {f"{block}.{norm}.weight": (size,), f"{block}.{norm}.bias": (size,)}
    return shapes


def transformers_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """The tensors of transformers' CLIPModel, by name."""
    shapes: dict[str, tuple[int, ...]] = {
        "logit_scale": (),
        "visual_projection.weight": (sizes.embed, sizes.width),
        "text_projection.weight": (sizes.embed, sizes.text_width),
        "vision_model.embeddings.class_embedding": (sizes.width,),
        "vision_model.embeddings.patch_embedding.weight": (sizes.width, 3, sizes.patch, sizes.patch),
        "vision_model.embeddings.position_embedding.weight": ((sizes.image_size // sizes.patch) ** 2 + 1, sizes.width),
        "text_model.embeddings.token_embedding.weight": (sizes.vocab, sizes.text_width),
        "text_model.embeddings.position_embedding.weight": (sizes.context, sizes.text_width),
    }
    norms = {"vision_model.pre_layrnorm": sizes.width, "vision_model.post_layernorm": sizes.width}
    for norm, size in (norms | {"text_model.final_layer_norm": sizes.text_width}).items():
        shapes |= {f"{norm}.weight": (size,), f"{norm}.bias": (size,)}
    towers = (
        ("vision_model", sizes.layers, sizes.width, sizes.mlp),
        ("text_model", sizes.text_layers, sizes.text_width, sizes.text_mlp),
    )
    for tower, layers, size, mlp in towers:
        for layer in range(layers):
            block = f"{tower}.encoder.layers.{layer}"
            linear = {f"self_attn.{name}_proj": (size, size) for name in ("q", "k", "v", "out")}
            for name, shape in (linear | {"mlp.fc1": (mlp, size), "mlp.fc2": (size, mlp)}).items():
                shapes |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
            for norm in ("layer_norm1", "layer_norm2"):
                shapes |= {f"{block}.{norm}.weight": (size,), f"{block}.{norm}.bias": (size,)}
    return shapes


def random_tensors(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    """Values at which every weight counts in the output: products keep their size, norms scale by about 1."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        is_table = "patch" not in name and any(part in name for part in ("embedding", "pos_embed", "token"))
        is_matrix = len(shape) > 1 and not is_table
        fan_in = noise[0].numel() if is_matrix else 1
        is_norm = len(shape) == 1 and name.endswith("weight")
        tensors[name] = 1 + 0.2 * noise if is_norm else noise * (1.5 / fan_in**0.5 if is_matrix else 0.5)
    return tensors | {name: torch.tensor(3.1) for name in shapes if name == "logit_scale"}


def write_clip_tokenizer(folder: Path) -> int:
    """A byte-pair tokenizer that can write any text, with a few merges; returns the id that ends a text, the last."""
    numbers = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that stand for themselves
    others = [byte for byte in range(256) if byte not in numbers]
    letters = [chr(number) for number in numbers] + [chr(256 + place) for place in range(len(others))]
    merges = [("c", "a"), ("ca", "t</w>"), ("r", "e"), ("re", "d</w>")]
    words = ["".join(pair) for pair in merges]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), *words, "<|startoftext|>", END]
    tokenizer = CLIPTokenizer(
        vocab={piece: number for number, piece in enumerate(pieces)}, merges=merges, model_max_length=TINY.context
    )
    tokenizer.save_pretrained(folder)
    assert len(pieces) == len(tokenizer) == TINY.vocab
    return len(pieces) - 1


def write_hpsv2(folder: Path, version: str = "2.1") -> dict[str, object]:
    """xswu/HPSv2's file of that version, nested under state_dict; the config is of the time when eos was said as 2."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = random_tensors(open_clip_shapes(TINY), seed=31 if version == "2.0" else 32)
    name = {"2.0": "HPS_v2_compressed.pt", "2.1": "HPS_v2.1_compressed.pt"}[version]
    torch.save({"epoch": 0, "name": "tiny", "state_dict": tensors}, folder / name)
    write_clip_tokenizer(folder)
    write_config(folder, clip_config(TINY, eos=2, activation="gelu"))
    return {"path": str(folder), "version": version}


def write_pick_score(folder: Path) -> dict[str, object]:
    """yuvalkirstain/PickScore_v1 with the buffers of its time."""
    return _write_clip(folder, seed=33, activation="gelu", buffers=True)


def write_clip_score(folder: Path) -> dict[str, object]:
    """openai/clip-vit-large-patch14, whose activation is quick_gelu."""
    return _write_clip(folder, seed=34, activation="quick_gelu", buffers=False)


def write_aesthetic(folder: Path) -> dict[str, object]:
    """The head of LAION's predictor beside openai/clip-vit-large-patch14, which holds buffers too."""
    options = _write_clip(folder, seed=35, activation="quick_gelu", buffers=True)
    head = random_tensors(head_shapes("layers.", TINY.embed), seed=36)
    torch.save(head, folder / "sac+logos+ava1-l14-linearMSE.pth", _use_new_zipfile_serialization=False)
    return options


def head_shapes(prefix: str, width: int) -> dict[str, tuple[int, ...]]:
    """The tensors of the head that the aesthetic predictor and ImageReward share."""
    widths = {0: (1024, width), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, shape in widths.items():
        shapes |= {f"{prefix}{layer}.weight": shape, f"{prefix}{layer}.bias": shape[:1]}
    return shapes


def write_config(folder: Path, settings: dict[str, object]) -> None:
    """config.json."""
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")


def _write_clip(folder: Path, *, seed: int, activation: str, buffers: bool) -> dict[str, object]:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = random_tensors(transformers_shapes(TINY), seed)
    if buffers:
        positions = (TINY.image_size // TINY.patch) ** 2 + 1
        tensors["vision_model.embeddings.position_ids"] = torch.arange(positions)[None]
        tensors["text_model.embeddings.position_ids"] = torch.arange(TINY.context)[None]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_config(folder, clip_config(TINY, eos=write_clip_tokenizer(folder), activation=activation))
    return {"path": str(folder)}
