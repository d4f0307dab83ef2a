"""The parts of a policy that turn one kind of input into the other, each loaded when it is first needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache

import torch

from flowrl.actors.device import ModelSpec
from flowrl.protocols import Decoder, ImageEncoder
from flowrl.types import TextCondition

_CODED_TOGETHER = 4  # images that pass through the VAE at a time: at 1024 pixels it takes gigabytes for each
_REMEMBERED_TEXTS = 256


class PolicyParts:
    """Text encoders, image encoder and image decoder of a policy; what no reward needs is never loaded."""

    def __init__(self, model: ModelSpec) -> None:
        self._model = model

    @cached_property
    def _encode_text(self) -> Callable[[str], TextCondition]:
        model = self._model
        encoder = model.family.load_encoder(
            model.path,
            max_sequence_length=model.section.max_sequence_length,
            dtype=model.dtype,
            device=model.device,
        )
        return lru_cache(_REMEMBERED_TEXTS)(encoder.encode)

    @cached_property
    def _image_encoder(self) -> ImageEncoder:
        return self._model.family.load_image_encoder(self._model.path, device=self._model.device)

    @cached_property
    def _decoder(self) -> Decoder:
        return self._model.family.load_decoder(self._model.path, device=self._model.device)

    def condition(self, prompts: Sequence[str]) -> TextCondition:
        """The conditions of B texts as one: embeds [B, L, D], pooled [B, P], on the CPU."""
        conditions = [self._encode_text(prompt) for prompt in prompts]
        return TextCondition(
            embeds=torch.cat([one.embeds for one in conditions]), pooled=torch.cat([one.pooled for one in conditions])
        )

    def latents(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels [B, 3, H, W] in [0, 1] to model-scaled latents [B, ...] float32 on the CPU.

        Raises ValueError for a size of which the policy makes no latents.
        """
        return torch.cat([self._image_encoder.encode(part).cpu() for part in pixels.split(_CODED_TOGETHER)])

    def pixels(self, latents: torch.Tensor) -> torch.Tensor:
        """Model-scaled latents [B, ...] to pixels [B, 3, H, W] float32 in [0, 1] on the CPU."""
        return torch.cat([self._decoder.decode(part).cpu() for part in latents.split(_CODED_TOGETHER)])
