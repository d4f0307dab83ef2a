"""Two arms beside each other, at every step at which both were evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flowrl.matched.measures import Measure, deciding
from flowrl.matched.paired import Difference, difference
from flowrl.matched.record import MatchedRecord
from flowrl.matched.turning import Kept, Turning, kept, turning


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One measure of two arms: first minus second at each step."""

    measure: Measure
    first: int  # places among the arms
    second: int
    at: tuple[Difference, ...]  # one per step

    @property
    def names(self) -> tuple[str, str]:
        """The two arms."""
        return self.measure.arms[self.first], self.measure.arms[self.second]

    @property
    def trained(self) -> list[tuple[int, Difference]]:
        """Step and difference of each evaluation after training began."""
        return [(step, one) for step, one in zip(self.measure.steps, self.at, strict=True) if step > 0]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that the numbers of an experiment come to."""

    record: MatchedRecord
    measures: tuple[Measure, ...]
    decides: Measure | None  # None: every measure was trained on by an arm, or none was taken
    comparisons: tuple[Comparison, ...]  # of the first arm with each other one, measure by measure
    turnings: tuple[Turning, ...]
    keep: tuple[Kept, ...]  # a step of each arm; empty where nothing decides

    def of(self, measure: Measure) -> list[Comparison]:
        """The comparisons by one measure, one per other arm."""
        return [one for one in self.comparisons if one.measure is measure]

    @property
    def wholes(self) -> list[Measure]:
        """The measures that are no part of another."""
        return [one for one in self.measures if one.part_of is None]


def findings(record: MatchedRecord, measures: Sequence[Measure]) -> Findings:
    """Compare, look for over-optimisation, and choose what to keep."""
    decides = deciding(record, measures)
    if decides is not None:  # what is most asked for stands first, and its parts with it
        measures = sorted(measures, key=lambda one: decides.name not in (one.name, one.part_of))
    others = range(1, len(record.arms))
    return Findings(
        record=record,
        measures=tuple(measures),
        decides=decides,
        comparisons=tuple(compare(measure, 0, other) for measure in measures for other in others),
        turnings=tuple(_turnings(record, measures)),
        keep=tuple(kept(arm, decides) for arm in range(len(record.arms))) if decides is not None else (),
    )


def compare(measure: Measure, first: int, second: int) -> Comparison:
    """One arm minus another, at every step."""
    values = measure.values
    at = tuple(difference(values[first, :, place], values[second, :, place]) for place in range(len(measure.steps)))
    return Comparison(measure=measure, first=first, second=second, at=at)


def gain(measure: Measure, arm: int) -> Difference | None:
    """What an arm has gained by its last step over its first; None where there is one."""
    values = measure.values[arm]
    return difference(values[:, -1], values[:, 0]) if len(measure.steps) > 1 else None


def _turnings(record: MatchedRecord, measures: Sequence[Measure]) -> list[Turning]:
    known = {measure.name: measure for measure in measures}
    found = []
    for place, arm in enumerate(record.arms):
        trained = next((known[name] for name in arm.trained_rewards if name in known), None)
        for watched in measures:
            if trained is None or watched.name in arm.trained_rewards or watched.steps != trained.steps:
                continue
            one = turning(place, trained, watched)
            if one is not None:
                found.append(one)
    return found
