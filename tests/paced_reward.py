"""A reward that takes its time, so that a test can do something while a run is under way."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from flowrl.types import RewardInput
from tests.cheap_rewards import LatentNorm


class Paced(LatentNorm):
    """The scores of LatentNorm; each call waits for `wait_s` seconds as long as the file `hold` exists."""

    def __init__(self, device: str = "cpu", hold: str = "", wait_s: float = 0.25) -> None:
        super().__init__(device)
        self.hold = Path(hold)
        self.wait_s = wait_s

    def __call__(self, batch: RewardInput) -> torch.Tensor:
        if self.hold.is_file():
            time.sleep(self.wait_s)
        return super().__call__(batch)


PACED = "tests.paced_reward:Paced"  # as a configuration names it
