"""DiT-Reward as a reward: the sampler's final latents and the policy's own text condition in, scores out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch

from flowrl.base.dtypes import torch_dtype
from flowrl.base.embedded import POCKET
from flowrl.types import RewardInput, TrainedOn
from rewards.dit_reward.layout import check_folder, load
from rewards.dit_reward.model import sample_noise
from rewards.files import resolve


class DiTReward:
    """Scores latents with a DiT-Reward folder (arXiv 2606.23626); fits `flowrl.protocols.ShardableReward`.

    `path` is such a folder or "pocket"; `base` the diffusers folder of its backbone, where it holds none and that has
    moved since the training. Raises `flowrl.base.errors.CheckpointError` when it cannot be loaded.
    """

    name = "dit_reward"
    input_kind: Literal["latent", "pixel"] = "latent"

    def __init__(
        self,
        path: str = POCKET,
        device: str = "cpu",
        dtype: str = "float32",
        batch_size: int = 16,
        base: str = "",
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"dit_reward: batch_size must be at least 1, got {batch_size}")
        model = load(resolve(path, self.name), dtype=torch_dtype(dtype), base=base)
        self.config = model.config
        self.latent_space: str | None = model.config.latent_space
        self.channels = int(model.transformer.config.in_channels)
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.module: torch.nn.Module = model.to(self.device)

    @staticmethod
    def check(options: Mapping[str, Any]) -> TrainedOn | None:
        """What the folder that `options` name was trained on; raises CheckpointError when its files are not whole, or
        its backbone's are not those of its training.
        """
        folder = resolve(options.get("path", POCKET), DiTReward.name)
        return check_folder(folder, options.get("base", "")).trained_on

    def __call__(self, batch: RewardInput) -> torch.Tensor:
        """Scores [B] float32, with gradient to `batch.latents` where that asks for one.

        Latents [B, C, h, w] float32 model-scaled; condition embeds [B or 1, L, D]. Raises ValueError when the batch
        lacks latents or their condition, or has other channels or another text length than the model was trained on.
        """
        latents, condition = batch.latents, batch.condition
        if latents is None or condition is None:
            raise ValueError("dit_reward scores latents: the batch must hold latents and their text condition")
        if latents.ndim != 4 or latents.shape[1] != self.channels:
            raise ValueError(
                f"dit_reward was trained on latents of {self.channels} channels in the space {self.latent_space!r}, "
                f"got latents {list(latents.shape)}; use a reward made for this policy's VAE"
            )
        if condition.embeds.shape[1] != self.config.text_length:
            raise ValueError(
                f"dit_reward was trained with {self.config.text_length} text tokens, got "
                f"{condition.embeds.shape[1]}; encode prompts with the max_sequence_length of its training"
            )
        size = len(latents)
        noise = sample_noise(batch.seeds, tuple(latents.shape[1:]))
        inputs = (latents, noise, condition.embeds.expand(size, -1, -1), condition.pooled.expand(size, -1))
        outputs: torch.Tensor = self.module(*(tensor.to(self.device) for tensor in inputs))
        return outputs[:, 0]
