"""The head of LAION's aesthetic predictor, which ImageReward took over."""

from __future__ import annotations

import torch
from torch import nn


class LinearHead(nn.Module):
    """One number from a feature [B, D]: five linear layers without an activation between them, so affine as a whole.

    Published (christophschuhmann/improved-aesthetic-predictor; arXiv 2304.05977 keeps it): the widths, the dropouts,
    which are off here as in every evaluation, and the key names layers.{0,2,4,6,7}. Computes in float32.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return self.layers(features.float())[:, 0]
