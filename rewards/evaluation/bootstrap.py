"""Percentile bootstrap over prompts: intervals of accuracies, and of the difference of two rewards on the same pairs.

Prompts are resampled, not pairs: pairs of one prompt share images and are not independent. All rewards see the same
draws, so a difference is a paired one. Where all prompts agree (all right, or all wrong) the interval has no width: it
says nothing of prompts that were not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from flowrl.core import seeds
from rewards.evaluation.accuracy import Credits

LEVEL = 0.95
_CHUNK = 4_000_000  # prompts drawn at once, over all draws of a chunk: 32 MB of counts


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A 95 % percentile interval; NaN at both ends when nothing is counted."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """The accuracy of one reward minus that of another on the same pairs.

    Example: ``PairedDifference(difference=0.02, interval=Interval(low=0.01, high=0.03), probability=0.999)``
    """

    difference: float
    interval: Interval
    probability: float  # share of the draws in which it is above 0, those at 0 counted by half


def resample(prompt: torch.Tensor, earned: Sequence[Credits], *, draws: int, seed: int, name: str) -> torch.Tensor:
    """The accuracies of R rewards in `draws` bootstrap samples of prompts: [draws, R] float64.

    `prompt` [M] says whose each pair is. All of `earned` must have the same weights, as one protocol on one table gives
    them. The draws depend on `seed`, `name` and the number of prompts that count. Raises ValueError without rewards,
    with less than one draw, or with other weights.
    """
    if not earned or draws < 1:
        raise ValueError(f"resampling needs rewards and draws, got {len(earned)} and {draws}")
    weight = earned[0].weight
    if any(not torch.equal(one.weight, weight) for one in earned):
        raise ValueError("rewards are compared on the same pairs: their weights must be equal")
    columns = torch.stack([weight, *(one.credit * weight for one in earned)], dim=1)  # [M, 1 + R]
    num_prompts = int(prompt.max()) + 1 if len(prompt) else 0
    sums = torch.zeros(num_prompts, columns.shape[1], dtype=torch.float64).index_add_(0, prompt, columns)
    sums = sums[sums[:, 0] > 0]
    if not len(sums):
        return torch.full((draws, len(earned)), torch.nan, dtype=torch.float64)
    generator = seeds.generator("bootstrap", name, seed)
    size = len(sums)
    parts = []
    for start in range(0, draws, max(1, _CHUNK // size)):
        rows = min(draws - start, max(1, _CHUNK // size))
        drawn = torch.randint(size, (rows, size), generator=generator)
        drawn += size * torch.arange(rows)[:, None]
        counts = torch.bincount(drawn.flatten(), minlength=rows * size).reshape(rows, size)
        totals = counts.double() @ sums
        parts.append(totals[:, 1:] / totals[:, :1])
    return torch.cat(parts)


def interval(samples: torch.Tensor) -> Interval:
    """The percentile interval of bootstrap samples [draws]."""
    tail = (1 - LEVEL) / 2
    low, high = samples.quantile(torch.tensor([tail, 1 - tail], dtype=samples.dtype)).tolist()
    return Interval(low=low, high=high)


def paired_difference(
    first: Credits, second: Credits, first_samples: torch.Tensor, second_samples: torch.Tensor
) -> PairedDifference:
    """How much better `first` is than `second`, from the columns [draws] that `resample` gave for both."""
    gaps = first_samples - second_samples
    above = (gaps > 0).double() + 0.5 * (gaps == 0).double()
    probability = above.mean().item() if gaps.isfinite().all() else torch.nan
    return PairedDifference(
        difference=first.accuracy - second.accuracy, interval=interval(gaps), probability=probability
    )
