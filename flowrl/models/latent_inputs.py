"""What latent rewards read of images and prompts: latents and text conditions by the policy's own encoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import torch

from flowrl.base.dtypes import torch_dtype
from flowrl.base.embedded import folder_of
from flowrl.core.buckets import BucketPlan, cover
from flowrl.models.image_parts import TOGETHER
from flowrl.protocols import ImageEncoder, PolicyFamily, PromptEncoder
from flowrl.registry import resolve
from flowrl.types import TextCondition

_TEXTS = 256  # conditions kept: 333 tokens of width 4096 are 5 MB in float32


@dataclass(frozen=True, kw_only=True)
class EncoderSetting:
    """Which encoders and how they are used; the same as in the training of the rewards.

    Example: ``EncoderSetting.of("stable-diffusion-3.5-large", max_sequence_length=256, dtype="bfloat16",
    device="cuda")``
    """

    family: PolicyFamily
    path: Path  # of the diffusers folder
    max_sequence_length: int  # T5 tokens
    dtype: torch.dtype  # of the text encoders; the VAE is float32
    device: str
    buckets: BucketPlan | None = None  # the sizes that images are brought to; None takes them as they are

    @classmethod
    def of(cls, path: str, *, family: str = "sd3", max_sequence_length: int, dtype: str, device: str) -> EncoderSetting:
        """Those of the folder that a configuration names, "pocket" for the embedded one.

        Raises ConfigError when there is no such family, CheckpointError when the folder is not whole.
        """
        loaders: PolicyFamily
        loaders, _ = resolve("policy", family)
        folder = folder_of(path, "sd35")
        loaders.check(folder)
        return cls(
            family=loaders,
            path=folder,
            max_sequence_length=max_sequence_length,
            dtype=torch_dtype(dtype),
            device=device,
        )

    @property
    def latent_space(self) -> str:
        """The name of the space of the latents."""
        return self.family.latent_space(self.path)

    def load_images(self) -> ImageEncoder:
        """The image encoder."""
        return self.family.load_image_encoder(self.path, device=self.device)

    def load_texts(self) -> PromptEncoder:
        """The text encoders."""
        return self.family.load_encoder(
            self.path, max_sequence_length=self.max_sequence_length, dtype=self.dtype, device=self.device
        )


class LatentInputs:
    """Encodes images and texts; each encoder is loaded when it is first needed, the last texts are kept."""

    def __init__(self, setting: EncoderSetting) -> None:
        self.setting = setting
        self._condition = lru_cache(maxsize=_TEXTS)(self._encode_text)

    @cached_property
    def _images(self) -> ImageEncoder:
        return self.setting.load_images()

    @cached_property
    def _texts(self) -> PromptEncoder:
        return self.setting.load_texts()

    def latents(self, pixels: torch.Tensor) -> torch.Tensor:
        """The latents [B, ...] float32, model-scaled and on the encoder's device, of pixels [B, 3, H, W] in [0, 1].

        Raises ValueError for a size of which the policy makes no latents; with buckets there is none. Raises
        CheckpointError when the encoder cannot be loaded.
        """
        pixels = pixels.to(self.setting.device)
        if (buckets := self.setting.buckets) is not None:
            pixels = cover(pixels, buckets.size_for(*pixels.shape[2:]))
        return torch.cat([self._images.encode(part) for part in pixels.split(TOGETHER)])

    def condition(self, prompts: Sequence[str]) -> TextCondition:
        """The conditions of B prompts: embeds [B, L, D] and pooled [B, P] on the CPU."""
        found = [self._condition(prompt) for prompt in prompts]
        return TextCondition(
            embeds=torch.cat([one.embeds for one in found]), pooled=torch.cat([one.pooled for one in found])
        )

    def _encode_text(self, prompt: str) -> TextCondition:
        return self._texts.encode(prompt)
