"""Advantages: how much better a sample is than the others of its group."""

from __future__ import annotations

from typing import Literal

import torch

_EPSILON = 1e-4  # as published; keeps a group of equal scores at zero


def group_advantages(
    scores: list[torch.Tensor], valid: list[torch.Tensor], *, std: Literal["global", "group"], clip: float
) -> list[torch.Tensor]:
    """(score - mean of the group) / (std + 1e-4), clipped to [-clip, clip]; one [G] float32 tensor per group.

    The standard deviation (population, float64) is that of the group, or with "global" that of all valid scores of
    the step, between-prompt differences included (arXiv:2505.05470, code). Masked samples take no part and get 0;
    so does a whole group of equal scores.
    """
    kept = [score.double()[mask] for score, mask in zip(scores, valid, strict=True)]
    everything = torch.cat(kept) if kept else torch.zeros(0, dtype=torch.float64)
    shared = everything.std(correction=0) if len(everything) else torch.zeros((), dtype=torch.float64)
    advantages = []
    for score, mask, values in zip(scores, valid, kept, strict=True):
        result = torch.zeros(score.shape, dtype=torch.float64)
        if len(values) and not bool((values == values[0]).all()):
            spread = shared if std == "global" else values.std(correction=0)
            result[mask] = ((values - values.mean()) / (spread + _EPSILON)).clamp(-clip, clip)
        advantages.append(result.float())
    return advantages
