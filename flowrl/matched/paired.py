"""Differences between two sets of scores of the same prompts and seeds, and how far they can be trusted.

Two questions are asked of each difference. Would it hold on other prompts? A paired bootstrap over prompts answers that
for the models that were trained. Would it hold had they been trained with other seeds? There are few of those, so
Student's t over the seeds' differences answers that, and widely.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_DRAWS = 4000  # resamples: the ends of a 95 % interval then repeat to about a fiftieth of its width
_SEED = 20260101
_ROUNDING = 1e-6  # of the scores: no difference at all
# Quantiles 0.975 of Student's t with 1, 2, ... degrees of freedom.
_STUDENT = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Where a value lies with 95 % confidence."""

    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether all of it lies on one side."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, kw_only=True)
class Difference:
    """First minus second, on the same prompts and seeds.

    Example: ``Difference(mean=0.01, prompts=Interval(low=0.004, high=0.016), seeds=None, by_seed=(0.01,), ahead=0.7)``
    """

    mean: float
    prompts: Interval  # of the mean for other prompts, these models given
    seeds: Interval | None  # of the mean for other seeds, these prompts given; None with one seed
    by_seed: tuple[float, ...]
    ahead: float  # the share of prompts on which the first is higher, ties counted half

    @property
    def clear(self) -> bool:
        """Whether it would hold on other prompts."""
        return self.prompts.excludes_zero

    @property
    def settled(self) -> bool:
        """Whether it would hold on other prompts, and with other seeds."""
        return self.clear and self.seeds is not None and self.seeds.excludes_zero


def difference(first: np.ndarray, second: np.ndarray) -> Difference:
    """Compare scores [seeds, prompts] float64, finite, with those of the same seeds and prompts.

    Raises ValueError where the shapes differ or nothing is in them.
    """
    if first.shape != second.shape or first.ndim != 2 or not first.size:
        raise ValueError(f"scores must be two arrays [seeds, prompts], got {first.shape} and {second.shape}")
    apart = first - second
    apart[np.abs(apart) <= _ROUNDING * np.maximum(np.abs(first), np.abs(second))] = 0.0
    by_prompt, by_seed = apart.mean(axis=0), apart.mean(axis=1)
    return Difference(
        mean=float(apart.mean()),
        prompts=over_prompts(by_prompt),
        seeds=_over_seeds(by_seed),
        by_seed=tuple(float(one) for one in by_seed),
        ahead=float((by_prompt > 0).mean() + (by_prompt == 0).mean() / 2),
    )


def over_prompts(values: np.ndarray) -> Interval:
    """The percentile bootstrap interval of the mean of values [prompts], prompts drawn with replacement.

    Equal numbers of prompts are drawn alike, so that a page is the same whenever it is written, and the intervals on it
    belong to the same draws.
    """
    means = _weights(len(values)) @ values
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(low=float(low), high=float(high))


def _over_seeds(values: np.ndarray) -> Interval | None:
    if len(values) < 2:
        return None
    mean, half = float(values.mean()), student(len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Interval(low=mean - half, high=mean + half)


def student(degrees: int) -> float:
    """The quantile 0.975 of Student's t; above 30 degrees of freedom to three digits."""
    return _STUDENT[degrees - 1] if degrees <= len(_STUDENT) else 1.96 + 2.45 / degrees


@lru_cache(maxsize=4)
def _weights(count: int) -> np.ndarray:
    """How often each of `count` prompts is in each resample, as a share: [draws, count] float64."""
    drawn = np.random.default_rng(_SEED).multinomial(count, np.full(count, 1 / count), size=_DRAWS)
    weights: np.ndarray = drawn / count
    return weights


def halves(count: int) -> Sequence[np.ndarray]:
    """The places of every other prompt, and of the rest: to choose by the one half and measure by the other."""
    places = np.arange(count)
    return places[::2], places[1::2]
