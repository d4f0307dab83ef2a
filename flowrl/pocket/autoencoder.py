"""Builds the pocket VAE: AutoencoderKL with 16 latent channels and factor 8, as in Stable Diffusion 3.5."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL

from flowrl.core.seeds import global_seed
from flowrl.pocket.fitting import FitPlan, FitRecord, fit
from flowrl.pocket.render import render
from flowrl.pocket.scene import IMAGE_SIZE, all_scenes

PLAN = FitPlan(steps=2800, lr=2e-3)
_BATCH = 24
_KL_WEIGHT = 1e-3


def new_vae() -> AutoencoderKL:
    """An untrained pocket VAE (0.9M parameters)."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 48, 64),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=True,
    )


def build_vae(folder: Path, *, seed: int, checkpoint: Path, plan: FitPlan = PLAN) -> FitRecord:
    """Train the VAE on renderings of the training scenes, measure its latents' scale, and save it in `folder`."""
    with global_seed(seed):
        vae = new_vae()
    scenes = all_scenes(test=False)

    def images(step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        chosen = torch.randint(0, len(scenes), (_BATCH,), generator=generator).tolist()
        return render([scenes[i] for i in chosen], generator, clean_share=0.5)

    def loss_at(step: int) -> torch.Tensor:
        pixels = images(step)
        noise = torch.randn(_BATCH, 16, 8, 8, generator=torch.Generator().manual_seed(step))
        with torch.autocast("cpu", torch.bfloat16):  # halves the time of the convolutions
            posterior = vae.encode(2 * pixels - 1).latent_dist
            decoded = (vae.decode(posterior.mean + posterior.std * noise).sample + 1) / 2
        error = decoded.float() - pixels
        return error.abs().mean() + 4 * error.square().mean() + _KL_WEIGHT * posterior.kl().mean() / 1024

    record = fit("vae", vae, loss_at, plan, checkpoint=checkpoint)
    with torch.no_grad():
        latents = torch.cat([vae.encode(2 * images(10**7 + i) - 1).latent_dist.mean for i in range(16)])
    vae.register_to_config(
        shift_factor=round(latents.mean().item(), 4), scaling_factor=round(1 / latents.std().item(), 4)
    )
    vae.save_pretrained(folder)
    return record
