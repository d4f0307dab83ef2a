"""Writes a small random DiNa-LRM in its published layout, with a Stable Diffusion 3.5 Medium folder for its base.

The keys are spelled out from the published layout, not taken from the code that reads them.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from safetensors.torch import save_file

WIDTH = 16
TAPS = 3
CHANNELS, TEXT_DIM, POOLED_DIM = 16, 96, 80  # those of the pocket policy
NUM_BLOCKS = 12
RANK, ALPHA = 4, 12  # alpha is neither the rank nor twice the rank, so that a wrong scale cannot hide
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
ATTENTION = {"attn": TARGETS, "attn2": TARGETS[:4]}  # blocks 0 to 12 have a second one, of image tokens alone


def write(folder: Path, *, scaling: float = 1.5305, shift: float = 0.0609) -> dict[str, str]:
    """Save both folders and return the options of the reward; the same bytes each time."""
    random = torch.Generator().manual_seed(30)
    _write_base(folder / "base", scaling, shift)
    lora = folder / "dina" / "checkpoint" / "backbone_lora"
    lora.mkdir(parents=True)
    (folder / "dina" / "config.json").write_text(json.dumps(config()), encoding="utf-8")
    adapter = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": TARGETS, "bias": "none"}
    adapter |= {"init_lora_weights": "gaussian", "exclude_modules": None, "use_dora": False, "rank_pattern": {}}
    (lora / "adapter_config.json").write_text(json.dumps(adapter), encoding="utf-8")
    save_file(_random(lora_shapes(WIDTH, RANK), random, 0.3), lora / "adapter_model.safetensors")
    torch.save(_random(head_shapes(WIDTH), random, 0.5), folder / "dina" / "checkpoint" / "rm_head.pt")
    return {"path": str(folder / "dina"), "base": str(folder / "base")}


def config() -> dict[str, dict[str, object]]:
    """The settings of the published training, at which the published config.json stands."""
    head = {"use_proj_in": False, "width": -1, "out_dim": 1, "num_queries": 4, "num_attn_heads": 8, "dropout": 0.0}
    model = {
        "model_type": "thurstone",
        "backbone_model_id": "stabilityai/stable-diffusion-3.5-medium",
        "num_transformer_layers": NUM_BLOCKS,
        "freeze_backbone": False,
        "use_lora": True,
        "use_text_features": True,
        "lora_config": {"r": RANK, "lora_alpha": ALPHA, "init_lora_weights": "gaussian"},
        "use_logistic": False,
        "visual_head_idx": [4, 8, 12],
        "text_head_idx": [4, 8, 12],
        "use_t_embed": True,
        "reward_head": head,
    }
    return {"model": model, "training": {"add_noise": True, "learning_rate": 5e-5}}


def lora_shapes(width: int, rank: int) -> dict[str, tuple[int, ...]]:
    """The keys of adapter_model.safetensors and their shapes."""
    shapes: dict[str, tuple[int, ...]] = {}
    for block in range(NUM_BLOCKS):
        for attention, targets in ATTENTION.items():
            for target in targets:
                layer = f"base_model.model.transformer_blocks.{block}.{attention}.{target}"
                shapes |= {f"{layer}.lora_A.weight": (rank, width), f"{layer}.lora_B.weight": (width, rank)}
    return shapes


def head_shapes(width: int) -> dict[str, tuple[int, ...]]:
    """The keys of rm_head.pt and their shapes."""
    narrow = width // 4
    linear = {"agg_visual": (width, TAPS * narrow), "agg_text": (width, TAPS * narrow), "head": (1, width)}
    shapes: dict[str, tuple[int, ...]] = {"query_tokens": (1, 4, width), "norm_ff.weight": (width,)}
    for adapters in ("layer_adapters_visual", "layer_adapters_text"):
        for tap in range(TAPS):
            shapes[f"{adapters}.{tap}.layer_embed"] = (1, 1, width)
            linear |= {
                f"{adapters}.{tap}.cond_mlp.0": (2 * width, width),
                f"{adapters}.{tap}.cond_mlp.2": (2 * width, 2 * width),
                f"{adapters}.{tap}.proj": (narrow, width),
            }
    for norm in ("attn1.norm_q", "attn1.norm_v", "attn1.norm_t", "attn2.norm_q", "attn2.norm_v"):
        shapes[f"{norm}.weight"] = (width,)
    for attention, ends in (("attn1", ("k_vis", "v_vis", "k_text", "v_text")), ("attn2", ("k_vis", "v_vis"))):
        linear |= {f"{attention}.to_{end}": (width, width) for end in ("q", *ends, "out.0")}
    for gate in ("gate_vis", "gate_text"):
        linear |= {f"attn1.{gate}.0": (width, width), f"attn1.{gate}.2": (1, width)}
    linear |= {"ff.0": (4 * width, width), "ff.2": (width, 4 * width)}
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def _random(shapes: dict[str, tuple[int, ...]], random: torch.Generator, std: float) -> dict[str, torch.Tensor]:
    """Nothing is zero as at the start of training: what does not enter the score would not be missed."""
    return {key: std * torch.randn(shape, generator=random) for key, shape in shapes.items()}


def _write_base(folder: Path, scaling: float, shift: float) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(31)
        net = SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_layers=14,
            num_attention_heads=2,
            attention_head_dim=WIDTH // 2,
            joint_attention_dim=TEXT_DIM,
            caption_projection_dim=WIDTH,
            pooled_projection_dim=POOLED_DIM,
            pos_embed_max_size=8,
            qk_norm="rms_norm",
            dual_attention_layers=tuple(range(13)),
        )
        for parameter in net.parameters():
            parameter.data.mul_(1.7)  # so that text and noise level change the output visibly
    net.save_pretrained(folder / "transformer")
    FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0).save_pretrained(folder / "scheduler")
    vae = {"_class_name": "AutoencoderKL", "latent_channels": CHANNELS, "block_out_channels": [8, 8, 8, 8]}
    (folder / "vae").mkdir()
    (folder / "vae" / "config.json").write_text(json.dumps(vae | {"scaling_factor": scaling, "shift_factor": shift}))
