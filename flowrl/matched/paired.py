"""Differences between two sets of scores of the same prompts and seeds, and how far they can be trusted.

Three intervals are given, because there are three questions. Would it hold on other prompts, for the models that were
trained? A paired bootstrap over prompts. Would it hold with other seeds, on these prompts? Student's t over the seeds'
differences. Would it hold with other prompts and other seeds? Both as random effects, crossed: the variance of the
mean is that of seeds plus that of prompts less their interaction, which is in either, with Satterthwaite's degrees of
freedom.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

FEWEST_PROMPTS = 8  # of which a bootstrap can say anything
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

    Example: ``Difference(mean=0.01, prompts=Interval(low=0.004, high=0.016), seeds=None, both=None, by_seed=(0.01,),
    ahead=0.7)``
    """

    mean: float
    prompts: Interval | None  # for other prompts, these models given; None with fewer than FEWEST_PROMPTS
    seeds: Interval | None  # for other seeds, these prompts given; None with one seed
    both: Interval | None  # for other prompts and other seeds; None where one of the others is
    by_seed: tuple[float, ...]
    ahead: float  # the share of prompts on which the first is higher, ties counted half

    @property
    def clear(self) -> bool:
        """Whether it would hold on other prompts, for the models that were trained."""
        return self.prompts is not None and self.prompts.excludes_zero

    @property
    def settled(self) -> bool:
        """Whether it would hold on other prompts and with other seeds."""
        return self.clear and self.both is not None and self.both.excludes_zero

    @property
    def holds(self) -> bool:
        """The most that can be asked: with several seeds that it is settled, with one that it is clear."""
        return self.clear if len(self.by_seed) == 1 else self.settled


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
        both=_over_both(apart),
        by_seed=tuple(float(one) for one in by_seed),
        ahead=float((by_prompt > 0).mean() + (by_prompt == 0).mean() / 2),
    )


def over_prompts(values: np.ndarray) -> Interval | None:
    """The bootstrap interval of the mean of values [prompts], prompts drawn with replacement; None for very few.

    It is the expanded percentile interval (Hesterberg, arXiv:1411.5279): quantiles further out than 2.5 %,
    by as much as Student's t lies beyond the normal, without which it is too narrow for few prompts. Equal numbers of
    prompts are drawn alike, so that a page is the same whenever it is written.
    """
    count = len(values)
    if count < FEWEST_PROMPTS:
        return None
    tail = NormalDist().cdf(-student(count - 1) * math.sqrt(count / (count - 1)))
    low, high = np.quantile(_weights(count) @ values, (tail, 1 - tail))
    return Interval(low=float(low), high=float(high))


def _over_seeds(values: np.ndarray) -> Interval | None:
    if len(values) < 2:
        return None
    return _around(float(values.mean()), float(values.var(ddof=1)) / len(values), len(values) - 1)


def _over_both(values: np.ndarray) -> Interval | None:
    seeds, prompts = values.shape
    if seeds < 2 or prompts < FEWEST_PROMPTS:
        return None
    by_seed, by_prompt, mean = values.mean(axis=1), values.mean(axis=0), float(values.mean())
    rest = values - by_seed[:, None] - by_prompt[None, :] + mean
    of_seeds, of_prompts = prompts * float(by_seed.var(ddof=1)), seeds * float(by_prompt.var(ddof=1))
    inner = float((rest**2).sum()) / ((seeds - 1) * (prompts - 1))
    # Never less than either alone: the interaction is only estimated.
    total = max(of_seeds + of_prompts - inner, of_seeds, of_prompts)
    if total == 0:
        return Interval(low=mean, high=mean)
    spread = of_seeds**2 / (seeds - 1) + of_prompts**2 / (prompts - 1) + inner**2 / ((seeds - 1) * (prompts - 1))
    return _around(mean, total / (seeds * prompts), total**2 / spread)


def _around(mean: float, variance: float, degrees: float) -> Interval:
    half = student(degrees) * math.sqrt(variance)
    return Interval(low=mean - half, high=mean + half)


def student(degrees: float) -> float:
    """The quantile 0.975 of Student's t, to three digits for whole degrees of freedom and a little above for others.

    Fewer than one count as one.
    """
    if degrees > len(_STUDENT):
        return 1.96 + 2.45 / degrees
    below = max(1, math.floor(degrees))
    if below >= len(_STUDENT) or degrees <= below:
        return _STUDENT[below - 1]
    share = (1 / below - 1 / degrees) / (1 / below - 1 / (below + 1))
    return _STUDENT[below - 1] + share * (_STUDENT[below] - _STUDENT[below - 1])


@lru_cache(maxsize=4)
def _weights(count: int) -> np.ndarray:
    """How often each of `count` prompts is in each resample, as a share: [draws, count] float64."""
    drawn = np.random.default_rng(_SEED).multinomial(count, np.full(count, 1 / count), size=_DRAWS)
    weights: np.ndarray = drawn / count
    return weights
