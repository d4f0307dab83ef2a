"""DiT-Reward on images: the policy's VAE and text encoders first, then the same network on latents.

The pixel interface of arXiv 2606.23626 (Table 2): slower, and for images that did not come from a sampler.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from flowrl.base.dtypes import torch_dtype
from flowrl.base.embedded import POCKET, folder_of
from flowrl.base.errors import CheckpointError
from flowrl.models.image_sizes import ImageChoice, buckets_of
from flowrl.models.latent_inputs import EncoderSetting, LatentInputs
from flowrl.models.sd3 import SD3
from flowrl.types import RewardInput, TrainedOn
from rewards.dit_reward.layout import check_folder, load_config
from rewards.dit_reward.reward import DiTReward
from rewards.files import resolve


class DiTRewardPixels:
    """Scores images with a DiT-Reward folder; fits `flowrl.protocols.ShardableReward`.

    `encoders` is the diffusers folder with the VAE and the text encoders, by default the reward's base. Images are
    brought to the nearest aspect-ratio bucket, of those of the reward's training unless `image_size`, `bucket_step` or
    `max_aspect` say otherwise; `image_size` 0, or a reward that knows no buckets, takes them as they are. Raises
    `flowrl.base.errors.CheckpointError` when a folder cannot be loaded.
    """

    name = "dit_reward_pixels"
    input_kind: Literal["latent", "pixel"] = "pixel"
    latent_space: str | None = None

    def __init__(
        self,
        path: str = POCKET,
        encoders: str = "",
        device: str = "cpu",
        dtype: str = "float32",
        batch_size: int = 16,
        base: str = "",
        image_size: int | None = None,
        bucket_step: int | None = None,
        max_aspect: float | None = None,
    ) -> None:
        folder = _encoder_folder(path, encoders, base)
        self._latent_reward = DiTReward(path=path, device=device, dtype=dtype, batch_size=batch_size, base=base)
        self.batch_size = batch_size
        config = self._latent_reward.config
        choice = ImageChoice(image_size=image_size, bucket_step=bucket_step, max_aspect=max_aspect)
        self._inputs = LatentInputs(
            SD3,
            EncoderSetting(
                path=folder,
                max_sequence_length=config.text_length - SD3.text_length(folder, 0),
                dtype=torch_dtype(dtype),
                device=device,
                buckets=choice.over(buckets_of(config.trained_on)),
            ),
        )

    @property
    def module(self) -> torch.nn.Module:
        """The network that scores latents, of which a gang may hold parts."""
        return self._latent_reward.module

    @module.setter
    def module(self, module: torch.nn.Module) -> None:
        """Score with this network from now on."""
        self._latent_reward.module = module

    @staticmethod
    def check(options: Mapping[str, Any]) -> TrainedOn | None:
        """None: it reads no latents; raises CheckpointError when the files that `options` name are not whole, or the
        encoders are of another latent space than the reward.
        """
        path = options.get("path", POCKET)
        base = options.get("base", "")
        space = check_folder(resolve(path, DiTReward.name), base).latent_space
        folder = _encoder_folder(path, options.get("encoders", ""), base)
        SD3.check(folder)
        if SD3.latent_space(folder) != space:
            raise CheckpointError(
                f"{folder}: makes latents of {SD3.latent_space(folder)}, but {path} was trained on {space}; "
                "give the model that it was trained with as the option encoders"
            )
        return None

    def __call__(self, batch: RewardInput) -> torch.Tensor:
        """Scores [B] float32 of pixels [B, 3, H, W] in [0, 1]; raises ValueError when the batch has none, or when the
        VAE makes no latents of their size.
        """
        if batch.pixels is None:
            raise ValueError("dit_reward_pixels scores images: the batch must hold pixels")
        return self._latent_reward(
            RewardInput(
                prompts=batch.prompts,
                seeds=batch.seeds,
                latents=self._inputs.latents(batch.pixels),
                condition=self._inputs.condition(batch.prompts),
            )
        )


def _encoder_folder(path: str, encoders: str, base: str) -> Path:
    named = encoders or base or (POCKET if path == POCKET else load_config(resolve(path, DiTReward.name)).base)
    return folder_of(named, "sd35")
