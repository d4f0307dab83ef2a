"""The oracle of the pocket world as a reward: what a reward model should have learned."""

from __future__ import annotations

from typing import Literal

import torch

from flowrl.pocket import oracle
from flowrl.pocket.scene import Scene
from flowrl.types import RewardInput, TrainedOn
from rewards.batch_inputs import pixels_of


class OracleReward:
    """Scores pocket images against their prompts by measurement; fits `flowrl.reward_protocols.Reward`.

    `part` is "total" or one of oracle.PARTS. `device` and `dtype` are those of the other rewards; the oracle always
    computes in float32 on the CPU.
    """

    input_kind: Literal["latent", "pixel"] = "pixel"
    latent_space: str | None = None

    def __init__(self, part: str = "total", device: str = "cpu", dtype: str = "float32", batch_size: int = 64) -> None:
        self.preflight(part)
        self.part = part
        self.name = "oracle" if part == "total" else f"oracle_{part}"
        self.device = torch.device(device)
        self.batch_size = batch_size

    @staticmethod
    def preflight(part: str) -> TrainedOn | None:
        """None: it reads no latents; raises ValueError when it measures no such part."""
        if part not in ("total", *oracle.PARTS):
            raise ValueError(f"oracle: part must be one of {['total', *oracle.PARTS]}, got {part!r}")
        return None

    def __call__(self, batch: RewardInput) -> torch.Tensor:
        """Scores [B] float32 in [0, 1] of pixels [B, 3, 64, 64]; raises ValueError on a prompt outside the grammar."""
        pixels = pixels_of(batch, self.name, torch.device("cpu")).detach()
        judged = oracle.score(pixels, [Scene.parse(prompt) for prompt in batch.prompts])
        scores = judged.total if self.part == "total" else judged.parts()[self.part]
        return scores.to(self.device)
