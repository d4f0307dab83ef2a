"""The parts of a policy that turn one kind of input into the other, each loaded when it is first needed."""

from __future__ import annotations

import torch

from flowrl.models.image_parts import SplitDecoder
from flowrl.models.latent_inputs import EncoderSetting, LatentInputs


class PolicyParts:
    """Encoders and image decoder of a policy; what no reward needs is never loaded."""

    def __init__(self, setting: EncoderSetting) -> None:
        self.inputs = LatentInputs(setting)  # makes latents of images and conditions of prompts
        self._decoder = SplitDecoder(lambda: setting.family.load_decoder(setting.path, device=setting.device))

    def pixels(self, latents: torch.Tensor) -> torch.Tensor:
        """Model-scaled latents [B, ...] to pixels [B, 3, H, W] float32 in [0, 1] on the CPU."""
        return self._decoder.decode(latents)
