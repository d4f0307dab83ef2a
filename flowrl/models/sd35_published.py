"""The settings of the published Stable Diffusion 3.5 models, so that their sizes are known before they are downloaded.

As the config.json files of the repositories on huggingface.co have them; what no shape depends on is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CLIP_TOKENS = 77
_VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 16,
    "norm_num_groups": 32,
    "sample_size": 1024,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


@dataclass(frozen=True, kw_only=True)
class PublishedPipeline:
    """One repository.

    Example: ``PUBLISHED["stabilityai/stable-diffusion-3.5-large"].transformer["num_layers"]`` is 38
    """

    repository: str
    transformer: Mapping[str, Any]  # its config.json
    vae: Mapping[str, Any]
    text_encoder_parameters: int  # of the two CLIPs and T5-XXL together


def _transformer(*, layers: int, heads: int, positions: int, dual: int) -> dict[str, Any]:
    return {
        "_class_name": "SD3Transformer2DModel",
        "sample_size": 128,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": layers,
        "num_attention_heads": heads,
        "attention_head_dim": 64,
        "joint_attention_dim": 4096,
        "caption_projection_dim": 64 * heads,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": positions,
        "qk_norm": "rms_norm",
        "dual_attention_layers": list(range(dual)),
    }


PUBLISHED: dict[str, PublishedPipeline] = {
    repository: PublishedPipeline(
        repository=repository, transformer=transformer, vae=_VAE, text_encoder_parameters=5_580_620_800
    )
    for repository, transformer in {
        "stabilityai/stable-diffusion-3.5-large": _transformer(layers=38, heads=38, positions=192, dual=0),
        "stabilityai/stable-diffusion-3.5-medium": _transformer(layers=24, heads=24, positions=384, dual=13),
    }.items()
}
