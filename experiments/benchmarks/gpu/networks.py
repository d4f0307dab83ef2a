"""The networks in their real classes and shapes with random weights, which are made on the device itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, SD3Transformer2DModel
from transformers import Qwen2VLConfig

from experiments.benchmarks.gpu.setting import Setting
from experiments.benchmarks.gpu.sizes import Sizes
from flowrl.base.empty_module import fill
from flowrl.models.sd3 import SD3Policy
from flowrl.types import TextCondition
from rewards.dit_reward.model import DiTRewardModel
from rewards.hpsv3.model import HEAD, HPSv3Model

DTYPE = torch.bfloat16
_SHIFT = 3.0  # of the published schedule


def policy(setting: Setting) -> SD3Policy:
    """The policy with an adapter that changes nothing yet."""
    sizes = setting.sizes
    network = _filled(empty_transformer(sizes), setting, DTYPE)
    made = SD3Policy(network, shift=_SHIFT, latent_space="", latent_shape=sizes.latent_shape)
    adapter = sizes.adapter
    made.attach_adapter(rank=adapter.rank, alpha=adapter.alpha, targets=list(adapter.targets), seed=0)
    return made


def vae(setting: Setting) -> AutoencoderKL:
    """The VAE in float32, as in a run."""
    with torch.device("meta"):
        empty = AutoencoderKL.from_config(dict(setting.sizes.vae))
    return _filled(empty, setting, torch.float32)


def dit_reward(setting: Setting) -> DiTRewardModel:
    """DiT-Reward as it scores: without what is never computed."""
    with torch.device("meta"):
        model = DiTRewardModel(empty_transformer(setting.sizes), setting.sizes.reward)
        model.leave_out_unused()
    return _filled(model, setting, DTYPE)


def hpsv3(setting: Setting) -> HPSv3Model:
    """HPSv3 as it scores, without its language head."""
    return _filled(empty_hpsv3(setting.sizes), setting, DTYPE)


def empty_transformer(sizes: Sizes) -> SD3Transformer2DModel:
    """The transformer on the meta device."""
    with torch.device("meta"):
        return SD3Transformer2DModel.from_config(dict(sizes.transformer))


def empty_hpsv3(sizes: Sizes) -> HPSv3Model:
    """HPSv3 on the meta device, but for buffers that no file holds."""
    language = sizes.language
    tokens = language.text["vocab_size"]
    config = Qwen2VLConfig(
        text_config=dict(language.text) | {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None},
        vision_config=dict(language.vision),
        image_token_id=tokens - 3,
        video_token_id=tokens - 2,
        vision_start_token_id=tokens - 6,
        vision_end_token_id=tokens - 5,
    )
    with init_empty_weights(include_buffers=False):
        return HPSv3Model(config)


def condition(setting: Setting, seed: int) -> TextCondition:
    """A text condition of the real shape on the CPU, where that of a run is as well."""
    draw = torch.Generator().manual_seed(seed)
    config = setting.sizes.transformer
    embeds = torch.randn(1, setting.sizes.text_length, config["joint_attention_dim"], generator=draw)
    pooled = torch.randn(1, config["pooled_projection_dim"], generator=draw)
    return TextCondition(embeds=embeds.to(DTYPE), pooled=pooled.to(DTYPE))


def _filled(module: Any, setting: Setting, dtype: torch.dtype) -> Any:
    fill(module, _weights(module, setting.device, dtype), setting.device)
    return module.eval()


def _weights(module: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights by which every layer keeps the size of its input: norms 1, biases 0, others normal by their fan-in."""
    draw = torch.Generator(device).manual_seed(0)
    for name, value in module.state_dict().items():
        made = torch.empty(value.shape, dtype=torch.float32 if name.startswith(HEAD) else dtype, device=device)
        if value.dim() > 1:
            made.normal_(0, (value.numel() / value.shape[0]) ** -0.5, generator=draw)
        else:
            made.fill_(float(name.endswith("weight")))
        yield name, made
