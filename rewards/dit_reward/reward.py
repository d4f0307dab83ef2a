"""DiT-Reward as a reward: the sampler's final latents and the policy's own text condition in, scores out."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Literal

import torch

from flowrl.base.dtypes import torch_dtype
from flowrl.base.embedded import POCKET
from flowrl.base.empty_module import fill
from flowrl.core.latent_space import channels_and_factor
from flowrl.reward_protocols import NeededFiles
from flowrl.types import HollowReward, RewardInput, SampleShapes, TrainedOn
from rewards.batch_inputs import LatentFormat
from rewards.dit_reward.hollow import hollow_latent
from rewards.dit_reward.layout import open_folder, read_folder
from rewards.dit_reward.model import sample_noise
from rewards.dit_reward.needs import needs_latent
from rewards.dit_reward.stored import empty_model, read_weights
from rewards.files import checkpoint_folder


class DiTReward:
    """Scores latents with a DiT-Reward folder (arXiv 2606.23626); fits `flowrl.reward_protocols.StreamedReward`.

    `path` is such a folder or "pocket"; `base` the diffusers folder of its backbone, where it holds none and that has
    moved since the training. `empty` makes it without weights. Raises `flowrl.base.errors.CheckpointError` when it
    cannot be loaded.
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
        empty: bool = False,
    ) -> None:
        folder = read_folder(checkpoint_folder(path, self.name), base)
        model = empty_model(folder)
        self._weights = partial(read_weights, folder, model, torch_dtype(dtype))
        self.device = torch.device(device)
        if not empty:
            fill(model, self._weights(share=device == "cpu"), self.device)
        self.config = model.config
        self.latent_space: str | None = model.config.latent_space
        self._format = LatentFormat(
            reward=self.name,
            latent_space=model.config.latent_space,
            channels=int(model.transformer.config.in_channels),
            text_length=model.config.text_length,
            noise=sample_noise,
        )
        self._largest = int(model.transformer.config.pos_embed_max_size) * int(model.transformer.config.patch_size)
        self.batch_size = batch_size
        self.module: torch.nn.Module = model

    def read_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The weights of `module` by name, each read when it is asked for; raises CheckpointError before the first."""
        return self._weights()

    @staticmethod
    def preflight(path: str, base: str) -> TrainedOn | None:
        """What the reward in `path` was trained on; raises CheckpointError when its files are not whole, or its
        backbone's are not those of its training.
        """
        return open_folder(checkpoint_folder(path, DiTReward.name), base).config.trained_on

    @staticmethod
    def needs(path: str, base: str, policy: str) -> tuple[NeededFiles, ...]:
        """The folder, and the base where its backbone is that one's."""
        return needs_latent(path, base, policy)

    @staticmethod
    def hollow(path: str, base: str, dtype: str, batch_size: int, shapes: SampleShapes) -> HollowReward:
        """The network of the folder, or of the published choice on SD3.5-Large where there is no folder yet."""
        return hollow_latent(path, base, dtype, batch_size, shapes)

    def __call__(self, batch: RewardInput) -> torch.Tensor:
        """Scores [B] float32, with gradient to `batch.latents` where that asks for one.

        Latents [B, C, h, w] float32 model-scaled; condition embeds [B or 1, L, D]. Raises ValueError when the batch
        lacks latents or their condition, has other channels or another text length than the model was trained on, or
        has latents larger than its positions.
        """
        tensors = self._format.tensors(batch, self.device)
        self._check_size(*tensors[0].shape[-2:])
        outputs: torch.Tensor = self.module(*tensors)
        return outputs[:, 0]

    def _check_size(self, height: int, width: int) -> None:
        """Raise ValueError when the backbone has no positions for latents of that size."""
        if max(height, width) <= self._largest:
            return
        space = channels_and_factor(self.config.latent_space)
        side = 0 if space is None else self._largest * space[1]
        images = f" (images of {side} x {side} pixels)" if side else ""
        raise ValueError(
            f"{self.name} has positions for latents of at most {self._largest} x {self._largest}{images}, got "
            f"latents of {width} x {height}; give it smaller ones"
        )
