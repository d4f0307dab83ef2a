"""The parts of a policy that turn one kind of input into the other, each loaded when it is first needed."""

from __future__ import annotations

from functools import cached_property

import torch

from flowrl.models.latent_inputs import EncoderSetting, LatentInputs
from flowrl.protocols import Decoder

_DECODED_TOGETHER = 4  # as images that are encoded


class PolicyParts:
    """Encoders and image decoder of a policy; what no reward needs is never loaded."""

    def __init__(self, setting: EncoderSetting) -> None:
        self._setting = setting
        self.inputs = LatentInputs(setting)  # makes latents of images and conditions of prompts

    @cached_property
    def _decoder(self) -> Decoder:
        return self._setting.family.load_decoder(self._setting.path, device=self._setting.device)

    def pixels(self, latents: torch.Tensor) -> torch.Tensor:
        """Model-scaled latents [B, ...] to pixels [B, 3, H, W] float32 in [0, 1] on the CPU."""
        return torch.cat([self._decoder.decode(part).cpu() for part in latents.split(_DECODED_TOGETHER)])
