"""Builds the pocket policy: a Stable Diffusion 3.5 pipeline trained by flow matching on renderings, flaws included."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from tqdm import tqdm

from flowrl.core.seeds import global_seed
from flowrl.pocket.fitting import FitPlan, FitRecord, fit
from flowrl.pocket.render import render
from flowrl.pocket.scene import IMAGE_SIZE, all_scenes
from flowrl.pocket.text import (
    CLIP_WIDTHS,
    JOINT_DIM,
    MAX_TOKENS,
    clip_encoder,
    clip_tokenizer,
    t5_encoder,
    t5_tokenizer,
)

PLAN = FitPlan(steps=5000, lr=2e-3, warmup=300, ema_decay=0.9995)
NUM_IMAGES = 40_000
CLEAN_SHARE = 0.45
_BATCH = 64
_SINGLE_SHARE = 0.25
_UNCONDITIONAL_SHARE = 0.1
# A pipeline call without max_sequence_length pads T5 to 256 tokens; training sees some of those as well.
_LONG_TEXT_EVERY = 40
_LONG_TEXT = 256


def new_pipeline(vae: AutoencoderKL) -> StableDiffusion3Pipeline:
    """An untrained pocket pipeline around a trained VAE."""
    tokenizer, tokenizer_3 = clip_tokenizer(), t5_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=IMAGE_SIZE // 8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=6,
        num_attention_heads=3,
        attention_head_dim=32,
        joint_attention_dim=JOINT_DIM,
        caption_projection_dim=96,
        pooled_projection_dim=sum(CLIP_WIDTHS),
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0),
        vae=vae,
        text_encoder=clip_encoder(0, tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=clip_encoder(1, tokenizer),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_encoder(tokenizer_3),
        tokenizer_3=tokenizer_3,
    )


class _TrainedParts(torch.nn.Module):
    """The transformer and the three text encoders, trained together; predicts the velocity eps - x0."""

    def __init__(self, pipeline: StableDiffusion3Pipeline) -> None:
        super().__init__()
        self.pipeline = [pipeline]  # in a list, so that the VAE does not become a submodule
        self.transformer = pipeline.transformer
        self.encoders = torch.nn.ModuleList(
            [pipeline.text_encoder, pipeline.text_encoder_2, pipeline.text_encoder_3],
        )

    def forward(
        self, latents: torch.Tensor, sigma: torch.Tensor, prompts: list[str], max_sequence_length: int
    ) -> torch.Tensor:
        embeds, _, pooled, _ = self.pipeline[0].encode_prompt(
            prompts,
            None,
            None,
            device=latents.device,
            do_classifier_free_guidance=False,
            max_sequence_length=max_sequence_length,
        )
        return self.transformer(
            hidden_states=latents,
            timestep=1000 * sigma,
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
            return_dict=False,
        )[0]


def scaled_latents(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """Images [B, 3, H, W] in [0, 1] to latents [B, 16, H/8, W/8] in the space that the transformer works in."""
    mean = vae.encode(2 * images - 1).latent_dist.mean
    return (mean - vae.config.shift_factor) * vae.config.scaling_factor


def training_set(vae: AutoencoderKL, *, num_images: int, seed: int, cache: Path) -> tuple[list[str], torch.Tensor]:
    """Prompts and latents [num_images, 16, 8, 8] of renderings of the training scenes; kept in `cache`."""
    scenes = all_scenes(test=False)
    singles = [scene for scene in scenes if scene.relation is None]
    pairs = [scene for scene in scenes if scene.relation is not None]
    generator = torch.Generator().manual_seed(seed)
    single = torch.rand(num_images, generator=generator) < _SINGLE_SHARE
    index = torch.randint(0, 2**40, (num_images,), generator=generator).tolist()
    pools = [singles if one else pairs for one in single.tolist()]
    chosen = [pool[i % len(pool)] for pool, i in zip(pools, index, strict=True)]
    prompts = [str(scene) for scene in chosen]
    if cache.exists():
        return prompts, torch.load(cache, weights_only=True)
    latents = []
    with torch.no_grad():
        for start in tqdm(range(0, num_images, 100), desc="encode training images", mininterval=5):
            images = render(chosen[start : start + 100], generator, clean_share=CLEAN_SHARE)
            latents.append(scaled_latents(vae, images))
    stored = torch.cat(latents)
    cache.parent.mkdir(parents=True, exist_ok=True)
    torch.save(stored, cache)
    return prompts, stored


def build_policy(
    folder: Path, *, vae_folder: Path, seed: int, work: Path, plan: FitPlan = PLAN, num_images: int = NUM_IMAGES
) -> FitRecord:
    """Train the pocket policy on renderings and save it in `folder` as a diffusers pipeline."""
    vae = AutoencoderKL.from_pretrained(vae_folder)
    prompts, latents = training_set(vae, num_images=num_images, seed=seed, cache=work / "latents.pt")
    with global_seed(seed):
        pipeline = new_pipeline(vae)
    parts = _TrainedParts(pipeline)

    def loss_at(step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        long_text = step % _LONG_TEXT_EVERY == _LONG_TEXT_EVERY - 1
        batch = _BATCH // 4 if long_text else _BATCH
        chosen = torch.randint(0, len(prompts), (batch,), generator=generator)
        dropped = (torch.rand(batch, generator=generator) < _UNCONDITIONAL_SHARE).tolist()
        texts = ["" if drop else prompts[i] for i, drop in zip(chosen.tolist(), dropped, strict=True)]
        clean = latents[chosen]
        noise = torch.randn(clean.shape, generator=generator)
        sigma = torch.sigmoid(0.4 + 1.1 * torch.randn(batch, generator=generator))
        noisy = torch.lerp(clean, noise, sigma[:, None, None, None])
        velocity = parts(noisy, sigma, texts, _LONG_TEXT if long_text else MAX_TOKENS)
        return (velocity - (noise - clean)).square().mean()

    record = fit("policy", parts, loss_at, plan, checkpoint=work / "policy.pt")
    pipeline.save_pretrained(folder)
    return record
