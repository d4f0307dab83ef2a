"""DiT-Reward on images: the policy's VAE and text encoders first, then the same network on latents.

The pixel interface of arXiv 2606.23626 (Table 2): slower, and for images that did not come from a sampler.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch

from flowrl.base.dtypes import torch_dtype
from flowrl.base.embedded import POCKET, folder_of
from flowrl.base.errors import CheckpointError, UserError
from flowrl.core.bucket_rules import bucket_fault
from flowrl.models.image_sizes import ImageChoice, buckets_of
from flowrl.models.latent_inputs import EncoderSetting, LatentInputs
from flowrl.models.sd3 import SD3
from flowrl.reward_protocols import NeededFiles
from flowrl.types import HollowReward, RewardInput, SampleShapes, TrainedOn
from rewards.batch_inputs import pixels_of
from rewards.dit_reward.hollow import hollow_pixels
from rewards.dit_reward.layout import holds_backbone, open_folder
from rewards.dit_reward.model import DiTRewardConfig
from rewards.dit_reward.needs import needs_pixels
from rewards.dit_reward.reward import DiTReward
from rewards.files import checkpoint_folder


class DiTRewardPixels:
    """Scores images with a DiT-Reward folder; fits `flowrl.reward_protocols.StreamedReward`.

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
        empty: bool = False,
    ) -> None:
        self._latent_reward = DiTReward(
            path=path,
            device=device,
            dtype=dtype,
            batch_size=batch_size,
            base=_backbone_base(path, encoders, base),
            empty=empty,
        )
        self.batch_size = batch_size
        choice = ImageChoice(image_size=image_size, bucket_step=bucket_step, max_aspect=max_aspect)
        self._inputs = LatentInputs(
            _setting(path, self._latent_reward.config, encoders or base, choice, dtype=dtype, device=device)
        )

    @property
    def module(self) -> torch.nn.Module:
        """The network that scores latents, of which a gang may hold parts."""
        return self._latent_reward.module

    @module.setter
    def module(self, module: torch.nn.Module) -> None:
        """Score with this network from now on."""
        self._latent_reward.module = module

    def read_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The weights of `module`, as those of the reward on latents."""
        return self._latent_reward.read_weights()

    @staticmethod
    def preflight(
        path: str,
        encoders: str,
        device: str,
        dtype: str,
        base: str,
        image_size: int | None,
        bucket_step: int | None,
        max_aspect: float | None,
    ) -> TrainedOn | None:
        """None: it reads no latents; raises CheckpointError when the files that the options name are not whole, or the
        encoders are not those of the reward's training, ValueError when there can be no such buckets.
        """
        folder = checkpoint_folder(path, DiTReward.name)
        config = open_folder(folder, _backbone_base(path, encoders, base)).config
        choice = ImageChoice(image_size=image_size, bucket_step=bucket_step, max_aspect=max_aspect)
        _setting(path, config, encoders or base, choice, dtype=dtype, device=device)
        return None

    @staticmethod
    def needs(path: str, encoders: str, base: str, policy: str) -> tuple[NeededFiles, ...]:
        """The folder, the encoders, and the base where its backbone is that one's."""
        return needs_pixels(path, encoders, base, policy)

    @staticmethod
    def hollow(path: str, encoders: str, base: str, dtype: str, batch_size: int, shapes: SampleShapes) -> HollowReward:
        """As that of the reward on latents, and the encoders; images are taken as large as the run's."""
        return hollow_pixels(path, encoders, base, dtype, batch_size, shapes)

    def __call__(self, batch: RewardInput) -> torch.Tensor:
        """Scores [B] float32 of pixels [B, 3, H, W] in [0, 1]; raises ValueError when the batch has none, or when the
        VAE makes no latents of their size.
        """
        pixels = pixels_of(batch, self.name, torch.device(self._inputs.setting.device))
        return self._latent_reward(
            RewardInput(
                prompts=batch.prompts,
                seeds=batch.seeds,
                latents=self._inputs.latents(pixels),
                condition=self._inputs.condition(batch.prompts),
            )
        )


def _backbone_base(path: str, encoders: str, base: str) -> str:
    """The base of the reward in `path`: none where `base` names the encoders of a reward with its own backbone."""
    for_encoders = not encoders and holds_backbone(checkpoint_folder(path, DiTReward.name))
    return "" if for_encoders else base


def _setting(
    path: str, config: DiTRewardConfig, encoders: str, choice: ImageChoice, *, dtype: str, device: str
) -> EncoderSetting:
    """The encoders in the folder `encoders`, or the reward's base, checked; raises CheckpointError when they make other
    latents or texts than the reward in `path` was trained on, ValueError when there can be no such buckets.
    """
    keys = ("image_size, unless 0,", "bucket_step", "max_aspect")
    if fault := bucket_fault(choice.image_size or None, choice.bucket_step, choice.max_aspect, keys=keys):
        raise ValueError(f"dit_reward_pixels: {fault}")
    try:
        buckets = choice.over(buckets_of(config.trained_on), keys=keys)
    except UserError as error:
        raise ValueError(f"dit_reward_pixels: {error}") from None
    folder = folder_of(encoders or config.base, "sd35")
    try:
        SD3.check(folder)
    except CheckpointError as error:
        raise CheckpointError(f"encoders of dit_reward_pixels: {error}") from error
    advice = "give the model that it was trained with as the option encoders"
    if SD3.latent_space(folder) != config.latent_space:
        raise CheckpointError(
            f"{folder}: makes latents of {SD3.latent_space(folder)}, but {path} was trained on {config.latent_space}; "
            f"{advice}"
        )
    clip_tokens = SD3.text_length(folder, 0)
    if config.text_length <= clip_tokens:
        raise CheckpointError(
            f"{folder}: makes texts of more than {clip_tokens} tokens, but {path} was trained on {config.text_length}; "
            f"{advice}"
        )
    return EncoderSetting(
        family=SD3(),
        path=folder,
        max_sequence_length=config.text_length - clip_tokens,
        dtype=torch_dtype(dtype),
        device=device,
        buckets=buckets,
    )
