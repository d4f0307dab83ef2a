"""Over-optimisation: where a trained reward still rises while something it was not trained on falls.

The best step of a noisy curve looks better than it is. So wherever a step is compared with the best one, the best is
chosen by one half of the prompts and measured by the other, and the other way round.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flowrl.matched.measures import Measure
from flowrl.matched.paired import Difference, difference, halves


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
    from_start: Difference  # at the last step


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The step at which a measure is highest, and what it has gained by then."""

    arm: str
    measure: str
    step: int
    mean: float  # there
    gain: Difference  # over the start, the step chosen by the other half of the prompts


def turning(arm: int, trained: Measure, watched: Measure) -> Turning | None:
    """Where `watched` turns in an arm while `trained` does not; None where it does not.

    Both measures must have the same steps and seeds.
    """
    truth = watched.values[arm].mean(axis=0)  # [steps, prompts]
    found: int | None = None
    fall: Difference | None = None
    for place in range(len(watched.steps) - 1, 1, -1):
        before = watched.values[arm][:, :place]
        fallen = difference(watched.values[arm][:, place], best_of(before))
        best = int(truth[:place].mean(axis=1).argmax())
        risen = difference(trained.values[arm][:, place], trained.values[arm][:, best])
        if not (fallen.clear and fallen.mean < 0 and risen.clear and risen.mean > 0):
            break
        found, fall = place, fall or fallen
    if found is None or fall is None:
        return None
    return Turning(
        arm=watched.arms[arm],
        trained=trained.name,
        watched=watched.name,
        best=watched.steps[int(truth[:found].mean(axis=1).argmax())],
        step=watched.steps[found],
        fall=fall,
        from_start=difference(watched.values[arm][:, -1], watched.values[arm][:, 0]),
    )


def kept(arm: int, measure: Measure) -> Kept:
    """The step of an arm at which a measure is highest, over all seeds."""
    means = measure.values[arm].mean(axis=(0, 2))
    place = int(means.argmax())
    return Kept(
        arm=measure.arms[arm],
        measure=measure.name,
        step=measure.steps[place],
        mean=float(means[place]),
        gain=difference(best_of(measure.values[arm]), measure.values[arm][:, 0]),
    )


def best_of(values: np.ndarray) -> np.ndarray:
    """Scores [seeds, steps, prompts] at the best step, which for each half of the prompts the other half chooses.

    Returns [seeds, prompts]. With a single prompt it chooses for itself.
    """
    chosen = np.empty((values.shape[0], values.shape[2]))
    first, second = halves(values.shape[2])
    for places, others in ((first, second), (second, first)):
        judges = others if len(others) else places
        step = int(values[:, :, judges].mean(axis=(0, 2)).argmax())
        chosen[:, places] = values[:, step][:, places]
    return chosen
