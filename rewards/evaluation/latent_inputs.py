"""What latent rewards read of images from disk: latents and text conditions by the policy's own encoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch

from flowrl.core.dtypes import torch_dtype
from flowrl.protocols import ImageEncoder, PolicyFamily, PromptEncoder
from flowrl.types import TextCondition
from rewards.data.buckets import BucketPlan, fit
from rewards.evaluation.score_cache import file_stamp

_TEXTS = 256  # conditions kept: 333 tokens of width 4096 are 5 MB in float32


@dataclass(frozen=True, kw_only=True)
class EncoderSetting:
    """Where the encoders are and how they are used; the same as in the training of the rewards.

    Example: ``EncoderSetting(path=Path("stable-diffusion-3.5-large"), max_sequence_length=256,
    buckets=BucketPlan(image_size=512), dtype="bfloat16", device="cuda")``
    """

    path: Path
    max_sequence_length: int  # T5 tokens
    buckets: BucketPlan  # the sizes that images are brought to
    dtype: str  # of the text encoders
    device: str


class LatentInputs:
    """Encodes images and texts; each encoder is loaded when it is first needed, the last texts are kept."""

    def __init__(self, family: PolicyFamily, setting: EncoderSetting) -> None:
        self._family = family
        self._setting = setting
        self._condition = lru_cache(maxsize=_TEXTS)(self._encode_text)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides what the encoders make of an image and a text; the device does not."""
        setting = self._setting
        return {
            "files": file_stamp(setting.path),
            "max_sequence_length": setting.max_sequence_length,
            "buckets": asdict(setting.buckets),
            "dtype": setting.dtype,
        }

    @cached_property
    def _images(self) -> ImageEncoder:
        return self._family.load_image_encoder(self._setting.path, device=self._setting.device)

    @cached_property
    def _texts(self) -> PromptEncoder:
        return self._family.load_encoder(
            self._setting.path,
            max_sequence_length=self._setting.max_sequence_length,
            dtype=torch_dtype(self._setting.dtype),
            device=self._setting.device,
        )

    def latents(self, image: torch.Tensor) -> torch.Tensor:
        """The latents [C, h, w] float32, on the CPU, of an image [3, H, W] uint8."""
        size = self._setting.buckets.size_for(*image.shape[1:])
        pixels = fit(image.to(self._setting.device), size)
        return self._images.encode(pixels[None])[0].cpu()

    def condition(self, prompts: Sequence[str]) -> TextCondition:
        """The conditions of B prompts: embeds [B, L, D] and pooled [B, P] on the CPU."""
        found = [self._condition(prompt) for prompt in prompts]
        return TextCondition(
            embeds=torch.cat([one.embeds for one in found]), pooled=torch.cat([one.pooled for one in found])
        )

    def _encode_text(self, prompt: str) -> TextCondition:
        return self._texts.encode(prompt)
