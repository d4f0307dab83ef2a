"""All that the numbers of an experiment come to: arms beside each other, over-optimisation, what to keep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from flowrl.config import RewardSpec
from flowrl.matched.measures import Measure, deciding
from flowrl.matched.paired import Difference, difference
from flowrl.matched.record import Arm, MatchedRecord
from flowrl.matched.turning import FEWEST_STEPS, Kept, Turning, kept, shared_steps, turning


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
    """What an experiment's numbers come to."""

    record: MatchedRecord
    measures: tuple[Measure, ...]  # what decides first, and its parts with it
    decides: Measure | None  # None: no measure that may decide was taken in all runs
    comparisons: tuple[Comparison, ...]  # of any two arms, measure by measure
    turnings: tuple[Turning, ...]
    unexamined: tuple[str, ...]  # why over-optimisation was not looked for somewhere, in words
    keep: tuple[Kept, ...]  # a step of each arm; empty where nothing decides, or nothing was taken before training

    def of(self, measure: Measure) -> list[Comparison]:
        """The comparisons by one measure."""
        return [one for one in self.comparisons if one.measure is measure]

    @property
    def wholes(self) -> list[Measure]:
        """The measures that are no part of another."""
        return [one for one in self.measures if one.part_of is None]


def findings(record: MatchedRecord, measures: Sequence[Measure]) -> Findings:
    """Compare, look for over-optimisation, and choose what to keep."""
    decides = deciding(record, measures)
    if decides is not None:
        measures = sorted(measures, key=lambda one: decides.name not in (one.name, one.part_of))
    pairs = list(combinations(range(len(record.arms)), 2))
    examined = list(_examined(record, measures))
    return Findings(
        record=record,
        measures=tuple(measures),
        decides=decides,
        comparisons=tuple(compare(measure, *pair) for measure in measures for pair in pairs),
        turnings=tuple(one for one in examined if isinstance(one, Turning)),
        unexamined=tuple(dict.fromkeys(one for one in examined if isinstance(one, str))),
        keep=()
        if decides is None or not decides.moves
        else tuple(kept(arm, decides) for arm in range(len(record.arms))),
    )


def compare(measure: Measure, first: int, second: int) -> Comparison:
    """One arm minus another, at every step."""
    values = measure.values
    at = tuple(difference(values[first, :, place], values[second, :, place]) for place in range(len(measure.steps)))
    return Comparison(measure=measure, first=first, second=second, at=at)


def gain(measure: Measure, arm: int) -> Difference | None:
    """What an arm has gained by its last step over the start; None where it was not measured at both."""
    values = measure.values[arm]
    return difference(values[:, -1], values[:, 0]) if measure.moves else None


def _examined(record: MatchedRecord, measures: Sequence[Measure]) -> Iterator[Turning | str]:
    """Every over-optimisation that is found, and in words what cannot be examined; diversity is no quality."""
    known = {measure.name: measure for measure in measures}
    for place, arm in enumerate(record.arms):
        trained = _trained_on(arm, known)
        if trained is None:
            yield f"Of {arm.name} it is not known whether what it was trained on still rises: that was not measured."
            continue
        for watched in measures:
            if watched.name in arm.trained_rewards or watched.source == "diversity":
                continue
            if len(shared_steps(trained, watched)) < FEWEST_STEPS:
                yield f"{watched.title} was measured too seldom beside {trained.name} to look for over-optimisation."
            elif (one := turning(place, trained, watched)) is not None:
                yield one


def _trained_on(arm: Arm, known: dict[str, Measure]) -> Measure | None:
    """What an arm was trained on, as one measure with the sign that training gives it; None where that is unknown."""
    specs: Sequence[RewardSpec] = arm.first.config.rewards.train if arm.first.config is not None else []
    measured = [known[spec.metric_name] for spec in specs if spec.metric_name in known]
    if not measured or len(measured) < len(specs) or len({one.steps for one in measured}) > 1:
        return None
    if len(specs) > 1 and any(spec.normalise == "group" for spec in specs):
        return None  # z-scores within a prompt have no mean that could rise
    shared = [prompt for prompt in measured[0].prompts if all(prompt in one.prompts for one in measured)]
    total = sum(
        spec.weight * spec.scale * one.values[..., [one.prompts.index(prompt) for prompt in shared]]
        for spec, one in zip(specs, measured, strict=True)
    )
    first = measured[0]
    name = " + ".join(
        spec.metric_name if spec.weight * spec.scale > 0 else f"less {spec.metric_name}" for spec in specs
    )
    return Measure(
        name=name,
        arms=first.arms,
        seeds=first.seeds,
        steps=first.steps,
        prompts=tuple(shared),
        values=np.asarray(total),
    )
