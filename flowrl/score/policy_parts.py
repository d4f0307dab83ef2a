"""The parts of a policy that turn one kind of input into the other, each loaded when it is first needed."""

from __future__ import annotations

from functools import cached_property

import torch

from flowrl.actors.device import ModelSpec
from flowrl.core.buckets import BucketPlan
from flowrl.models.latent_inputs import EncoderSetting, LatentInputs
from flowrl.protocols import Decoder

_DECODED_TOGETHER = 4  # as images that are encoded


class PolicyParts:
    """Encoders and image decoder of a policy; what no reward needs is never loaded.

    `buckets` are the sizes that images are brought to on the way to latents; None takes them as they are.
    """

    def __init__(self, model: ModelSpec, buckets: BucketPlan | None = None) -> None:
        self._model = model
        self._buckets = buckets

    @cached_property
    def inputs(self) -> LatentInputs:
        """What makes latents of images and conditions of prompts."""
        model = self._model
        setting = EncoderSetting(
            path=model.path,
            max_sequence_length=model.section.max_sequence_length,
            dtype=model.dtype,
            device=model.device,
            buckets=self._buckets,
        )
        return LatentInputs(model.family, setting)

    @cached_property
    def _decoder(self) -> Decoder:
        return self._model.family.load_decoder(self._model.path, device=self._model.device)

    def pixels(self, latents: torch.Tensor) -> torch.Tensor:
        """Model-scaled latents [B, ...] to pixels [B, 3, H, W] float32 in [0, 1] on the CPU."""
        return torch.cat([self._decoder.decode(part).cpu() for part in latents.split(_DECODED_TOGETHER)])
