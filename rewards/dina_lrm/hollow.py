"""DiNa-LRM without weights, by which `flowrl plan` counts what it takes."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel

from flowrl.base.dtypes import torch_dtype
from flowrl.models.sd35_published import PUBLISHED
from flowrl.types import HollowCall, HollowReward, SampleShapes
from rewards.dina_lrm.layout import load_config
from rewards.dina_lrm.model import DiNaConfig, DiNaModel, NoiseLevel
from rewards.files import sd3_settings

_BASE = "stabilityai/stable-diffusion-3.5-medium"


def hollow_dina(
    path: str, base: str, num_levels: int, dtype: str, batch_size: int, shapes: SampleShapes
) -> HollowReward:
    """The reward of these folders, or of the published sizes for one that is not there yet."""
    folder, transformer = Path(path), Path(base) / "transformer"
    config = load_config(folder) if folder.is_dir() else DiNaConfig()
    settings = sd3_settings(transformer) if transformer.is_dir() else dict(PUBLISHED[_BASE].transformer)
    with torch.device("meta"):
        levels = (NoiseLevel(sigma=0.5, timestep=500.0),) * num_levels
        model = DiNaModel(SD3Transformer2DModel.from_config(settings), config, levels).to(torch_dtype(dtype))
        latents = torch.empty(batch_size, *shapes.latents)
        embeds = torch.empty(batch_size, *shapes.text, dtype=shapes.text_dtype)
        pooled = torch.empty(batch_size, shapes.pooled, dtype=shapes.text_dtype)
    call = HollowCall(module=model, run=model, inputs=(latents, torch.empty_like(latents), embeds, pooled))
    return HollowReward(samples=batch_size, calls=(call,))
