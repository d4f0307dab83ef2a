"""Over-optimisation: where a trained reward still rises while something it was not trained on falls.

The best step of a noisy curve looks better than it is, whether the noise is of prompts or of training. So wherever
something is compared with a best step, what is measured and what chooses are never the same: each half of the prompts
of each seed is taken at the step that the other half of the prompts of the other seeds chooses. With a single seed the
noise of its training cannot be told from a trend, and what is found is said of that run alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flowrl.matched.measures import Measure
from flowrl.matched.paired import Difference, difference

FEWEST_STEPS = 3  # evaluations, of which the last two must be below the best


@dataclass(frozen=True, kw_only=True)
class Turning:
    """A watched measure of an arm that falls from a step on, while what was trained on stands above where it was.

    Example: ``Turning(arm="hpsv3", trained="hpsv3", watched="oracle", best=20, step=30, fall=..., from_start=...)``
    """

    arm: str
    trained: str
    watched: str
    best: int  # the step at which the watched measure was highest
    step: int  # the first from which on it is clearly below, to the end
    fall: Difference  # at the last step, against the best before it
    from_start: Difference | None  # at the last step; None where it was not taken before training


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The step at which a measure is highest, and what it has gained by then."""

    arm: str
    measure: str
    step: int
    mean: float  # at that step, which looks better than it is
    gain: Difference  # over the start, of a step that other prompts and other seeds choose


def turning(arm: int, trained: Measure, watched: Measure) -> Turning | None:
    """Where `watched` turns in an arm while `trained` does not; None where it does not.

    Both are taken at the steps that both have. Raises ValueError where their seeds differ or these are too few.
    """
    steps = shared_steps(trained, watched)
    if trained.seeds != watched.seeds or len(steps) < FEWEST_STEPS:
        raise ValueError(f"{trained.name} and {watched.name} must share seeds and {FEWEST_STEPS} steps, got {steps}")
    truth, reward = (one.values[arm][:, [one.steps.index(step) for step in steps]] for one in (watched, trained))
    found: int | None = None
    for place in range(len(steps) - 1, 0, -1):
        best = int(truth[:, :place].mean(axis=(0, 2)).argmax())
        fallen = difference(truth[:, place], best_of(truth[:, :place]))
        risen = difference(reward[:, place], reward[:, best])
        if not (fallen.holds and fallen.mean < 0 and risen.holds and risen.mean > 0):
            break
        found = place
    if found is None or found == len(steps) - 1:  # a last evaluation alone is no trend
        return None
    return Turning(
        arm=watched.arms[arm],
        trained=trained.name,
        watched=watched.name,
        best=steps[int(truth[:, :found].mean(axis=(0, 2)).argmax())],
        step=steps[found],
        fall=difference(truth[:, -1], best_of(truth[:, :-1])),
        from_start=difference(truth[:, -1], truth[:, 0]) if steps[0] == 0 else None,
    )


def shared_steps(one: Measure, other: Measure) -> list[int]:
    """The steps at which both were taken."""
    return [step for step in one.steps if step in other.steps]


def kept(arm: int, measure: Measure) -> Kept:
    """The step of an arm at which a measure is highest, over all seeds; it must have been taken before training."""
    values = measure.values[arm]
    means = values.mean(axis=(0, 2))
    return Kept(
        arm=measure.arms[arm],
        measure=measure.name,
        step=measure.steps[int(means.argmax())],
        mean=float(means.max()),
        gain=difference(best_of(values), values[:, 0]),
    )


def best_of(values: np.ndarray) -> np.ndarray:
    """Scores [seeds, steps, prompts] at the best step, which for each half of the prompts of each seed others choose.

    Returns [seeds, prompts]. A single seed, and a single prompt, chooses for itself.
    """
    seeds, _, prompts = values.shape
    chosen = np.empty((seeds, prompts))
    halves = (np.arange(0, prompts, 2), np.arange(1, prompts, 2))
    for seed in range(seeds):
        others = [other for other in range(seeds) if other != seed] or [seed]
        for places, rest in (halves, halves[::-1]):
            judges = rest if len(rest) else places
            step = int(values[others][:, :, judges].mean(axis=(0, 2)).argmax())
            chosen[seed, places] = values[seed, step, places]
    return chosen
