"""A picture of what the pocket policy generates: one row per held-out prompt, with the prompt above it."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image, ImageDraw

from flowrl.base.embedded import embedded
from flowrl.base.library_noise import hide_progress_bars
from flowrl.pocket.prompt_sets import prompt_file
from flowrl.pocket.text import MAX_TOKENS

_COLUMNS = 6
_SCALE = 2  # pixels of the sheet for one of the image
_CAPTION = 16  # pixels


def draw_sheet(out: Path, *, seed: int, rows: int = 6) -> Path:
    """Draw samples of the first held-out prompts with the diffusers pipeline, as a PNG; returns its path."""
    hide_progress_bars()
    pipeline = StableDiffusion3Pipeline.from_pretrained(embedded("sd35"))
    pipeline.set_progress_bar_config(disable=True)
    prompts = prompt_file("eval").read_text(encoding="utf-8").splitlines()[:rows]
    size = _SCALE * pipeline.transformer.config.sample_size * pipeline.vae_scale_factor
    sheet = Image.new("RGB", (_COLUMNS * size, rows * (size + _CAPTION)), "white")
    for row, prompt in enumerate(prompts):
        images = pipeline(
            prompt,
            num_images_per_prompt=_COLUMNS,
            num_inference_steps=10,
            guidance_scale=4.5,
            max_sequence_length=MAX_TOKENS,
            height=size // _SCALE,
            width=size // _SCALE,
            generator=torch.Generator().manual_seed(seed + row),
        ).images
        top = row * (size + _CAPTION)
        ImageDraw.Draw(sheet).text((2, top + 2), prompt, fill="black")
        for column, image in enumerate(images):
            sheet.paste(image.resize((size, size), Image.Resampling.NEAREST), (column * size, top + _CAPTION))
    sheet.save(out)
    return out
