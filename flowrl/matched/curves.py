"""The curves of an experiment: the mean over seeds of each arm, and the band from the lowest seed to the highest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from flowrl.matched.comparison import Comparison, Findings
from flowrl.matched.measures import Measure
from flowrl.matched.record import Arm, MatchedRecord
from flowrl.report.charts import LINE_STYLES, POINT_STYLES, Chart, Mark, Series
from flowrl.report.run_record import RunRecord
from flowrl.report.wording import listed

Axis = Literal["steps", "samples", "hours"]
AXES: tuple[Axis, ...] = ("steps", "samples", "hours")
_X_NAMES: Mapping[Axis, str] = {"steps": "step", "samples": "images", "hours": "hours"}
# What training logs at each step, with a title and what it means.
_TRAINING = {
    "policy/kl": ("KL to the start", "How far the policy has moved, of the samples of a step."),
    "reward/total/mean": ("Reward while training", "Of the prompts of the step, which are others each time."),
    "policy/diversity": ("Diversity while training", "Distance between the images of one prompt of the step."),
    "policy/grad_norm": ("Gradient norm", "Before clipping."),
    "policy/clip_fraction": ("Clip fraction", "Share of ratios outside the clip range."),
}
_FROM_ZERO = ("policy/kl", "policy/grad_norm", "policy/clip_fraction")


@dataclass(frozen=True, kw_only=True)
class Positions:
    """Where the steps of a run lie on each axis."""

    steps: Mapping[int, float]
    samples: Mapping[int, float]  # images that were trained on by then
    hours: Mapping[int, float]  # of training steps, evaluations not counted

    def on(self, axis: Axis) -> Mapping[int, float]:
        """Step -> place on an axis."""
        return {"steps": self.steps, "samples": self.samples, "hours": self.hours}[axis]


def positions(run: RunRecord) -> Positions:
    """Of every step that was logged; a step that did not log its images or seconds adds none."""
    steps = [int(row["step"]) for row in run.metrics]
    samples = accumulate(row.get("count/images", 0.0) for row in run.metrics)
    seconds = accumulate(row.get("time/step_s", 0.0) for row in run.metrics)
    return Positions(
        steps={step: float(step) for step in steps},
        samples=dict(zip(steps, samples, strict=True)),
        hours={step: spent / 3600 for step, spent in zip(steps, seconds, strict=True)},
    )


@dataclass(frozen=True, kw_only=True)
class _Places:
    """Where the steps of an arm lie on one axis: the mean of its seeds, which differ in hours alone."""

    name: str
    at: Mapping[int, float]

    @staticmethod
    def of(arm: Arm, axis: Axis) -> _Places:
        found = [positions(run).on(axis) for run in arm.runs.values()]
        shared = set.intersection(*map(set, found))
        return _Places(name=arm.name, at={step: sum(one[step] for one in found) / len(found) for step in shared})


def style(place: int) -> str:
    """How the points of the arm at a place are drawn, so that arms can be told apart without colour."""
    return POINT_STYLES[place % len(POINT_STYLES)]


def measure_charts(found: Findings, axis: Axis) -> list[Chart]:
    """A chart for each measure with a line per arm; where an arm is over-optimised, the step is marked."""
    arms, charts = [_Places.of(arm, axis) for arm in found.record.arms], []
    for measure in found.measures:
        if len(measure.steps) < 2:
            continue
        marks = [
            Mark(x=arms[place].at[one.step], slot=place + 1, text="below its best")
            for one in found.turnings
            if one.watched == measure.name
            for place in [measure.arms.index(one.arm)]
        ]
        charts.append(
            Chart(
                title=measure.title,
                note=_note(measure, found),
                series=[_line(arm, measure, place) for place, arm in enumerate(arms)],
                x_name=_X_NAMES[axis],
                marks=marks,
                large=measure is found.decides,
            )
        )
    return charts


def training_charts(record: MatchedRecord, axis: Axis) -> list[Chart]:
    """What was logged while training, with a line per arm."""
    arms, charts = [_Places.of(arm, axis) for arm in record.arms], []
    for key, (title, note) in _TRAINING.items():
        series = []
        for place, arm in enumerate(record.arms):
            curves = [dict(run.series(key)) for run in arm.runs.values()]
            steps = sorted(set.intersection(*map(set, curves)))
            values = [[curve[step] for step in steps] for curve in curves]
            series.append(_banded(arms[place], steps, values, place, marked=False))
        if any(one.points for one in series):
            from_zero = key in _FROM_ZERO
            charts.append(Chart(title=title, note=note, series=series, x_name=_X_NAMES[axis], from_zero=from_zero))
    return charts


def difference_charts(found: Findings) -> Iterator[Chart]:
    """A chart for each measure and pair: first minus second at each step, with its interval over prompts."""
    for measure in found.measures:
        for pair in found.of(measure):
            if len(measure.steps) > 1:
                yield _difference_chart(pair, several=len(measure.arms) > 2)


def _difference_chart(pair: Comparison, *, several: bool) -> Chart:
    first, second = pair.names
    steps = pair.measure.steps
    points = [(float(step), one.mean) for step, one in zip(steps, pair.at, strict=True)]
    intervals = [one.prompts for one in pair.at if one.prompts is not None]
    band = [(one.low, one.high) for one in intervals] if len(intervals) == len(points) else []
    lines = [Series(name=f"{first} \u2212 {second}", points=points, band=band, slot=3, style="marked")]
    if len(pair.measure.seeds) > 1:
        for place, seed in enumerate(pair.measure.seeds):
            own = [(float(step), one.by_seed[place]) for step, one in zip(steps, pair.at, strict=True)]
            lines.append(Series(name=f"seed {seed}", points=own, slot=0, style="faint"))
    trained = pair.measure.trained_by
    note = f"Trained on by {listed(list(trained))}." if trained else ""
    better = "is more diverse" if pair.measure.source == "diversity" else "ahead"
    return Chart(
        title=f"{pair.measure.title}: {first} \u2212 {second}" if several else pair.measure.title,
        note=note,
        series=lines,
        zero_line=True,
        above=f"{first} {better}",
        below=f"{second} {better}",
    )


def _note(measure: Measure, found: Findings) -> str:
    if measure.trained_by:
        return f"Trained on by {listed(list(measure.trained_by))}."
    if measure.source == "diversity":
        return "Distance between the images of one prompt; a steady fall means that they become alike."
    return "Decides." if measure is found.decides else "" if measure.part_of else "Watched, not trained on."


def _line(arm: _Places, measure: Measure, place: int) -> Series:
    values = measure.values[place].mean(axis=2).tolist()  # [seeds, steps]
    return _banded(arm, measure.steps, values, place, marked=True)


def _banded(
    arm: _Places, steps: Sequence[int], values: Sequence[Sequence[float]], place: int, *, marked: bool
) -> Series:
    columns = list(zip(*values, strict=True))
    means = [sum(column) / len(column) for column in columns]
    return Series(
        name=arm.name,
        points=list(zip((arm.at[step] for step in steps), means, strict=True)),
        band=[(min(column), max(column)) for column in columns] if len(values) > 1 else (),
        slot=place + 1,
        style=style(place) if marked else LINE_STYLES[place % len(LINE_STYLES)],
    )
