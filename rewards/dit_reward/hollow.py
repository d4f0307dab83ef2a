"""DiT-Reward without weights, by which `flowrl plan` counts what it takes."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel

from flowrl.base.dtypes import torch_dtype
from flowrl.base.embedded import folder_of
from flowrl.base.tensor_files import num_elements
from flowrl.base.weight_files import read_json
from flowrl.models.image_parts import TOGETHER
from flowrl.models.sd3 import SD3ImageEncoder
from flowrl.models.sd35_published import PUBLISHED
from flowrl.types import HollowCall, HollowReward, SampleShapes
from rewards.dit_reward.layout import holds_backbone, read_folder
from rewards.dit_reward.model import DiTRewardConfig, DiTRewardModel
from rewards.dit_reward.stored import empty_model

# A reward of the policy's own model, as configs/reward trains it; of any other policy the published one.
_NOT_TRAINED_YET = {
    "stable-diffusion-3.5-medium": ("stabilityai/stable-diffusion-3.5-medium", (9, 14, 17, 23)),
}


def hollow_latent(path: str, base: str, dtype: str, batch_size: int, shapes: SampleShapes) -> HollowReward:
    """The reward on latents: of the folder, or where there is none yet, the published choice on SD3.5-Large."""
    model = hollow_model(path, base, shapes).to(torch_dtype(dtype))
    return HollowReward(samples=batch_size, calls=(_scoring(model, batch_size, shapes),))


def hollow_pixels(
    path: str, encoders: str, base: str, dtype: str, batch_size: int, shapes: SampleShapes
) -> HollowReward:
    """The reward on images: the VAE's encoder and the text encoders besides."""
    own = holds_backbone(folder_of(path, "dit_reward")) if folder_of(path, "dit_reward").is_dir() else False
    model = hollow_model(path, "" if own else base, shapes).to(torch_dtype(dtype))
    folder = folder_of(encoders or base or model.config.base, "sd35")
    if (folder / "vae" / "config.json").is_file():
        settings = read_json(folder / "vae" / "config.json")
        text = num_elements(folder.glob("text_encoder*/*.safetensors"))
    else:
        published = PUBLISHED.get(model.config.base, PUBLISHED[DiTRewardConfig.base])
        settings, text = dict(published.vae), published.text_encoder_parameters
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(settings)
        images = torch.empty(min(TOGETHER, batch_size), *shapes.pixels)
    times = -(-batch_size // TOGETHER)
    encoding = HollowCall(module=vae, run=SD3ImageEncoder(vae, 1).encode, inputs=(images,), spread=False, times=times)
    return HollowReward(
        samples=batch_size,
        calls=(encoding, _scoring(model, batch_size, shapes)),
        other_bytes=text * torch_dtype(dtype).itemsize,
    )


def hollow_model(path: str, base: str, shapes: SampleShapes) -> DiTRewardModel:
    """The network on the meta device; raises CheckpointError when the folder is there and not whole."""
    folder = folder_of(path, "dit_reward")
    if folder.is_dir():
        return empty_model(read_folder(folder, base))
    base, layers = _NOT_TRAINED_YET.get(shapes.policy, (DiTRewardConfig.base, DiTRewardConfig.layers))
    config = DiTRewardConfig(text_length=shapes.text[0], latent_space="", base=base, layers=layers)
    with torch.device("meta"):
        transformer = SD3Transformer2DModel.from_config(dict(PUBLISHED[config.base].transformer))
        model = DiTRewardModel(transformer, config)
    model.leave_out_unused()
    return model.eval().requires_grad_(False)


def _scoring(model: DiTRewardModel, batch_size: int, shapes: SampleShapes) -> HollowCall:
    with torch.device("meta"):
        latents = torch.empty(batch_size, *shapes.latents)
        embeds = torch.empty(batch_size, *shapes.text, dtype=shapes.text_dtype)
        pooled = torch.empty(batch_size, shapes.pooled, dtype=shapes.text_dtype)
    return HollowCall(module=model, run=model, inputs=(latents, torch.empty_like(latents), embeds, pooled))
