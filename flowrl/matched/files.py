"""The numbers and figures of an experiment's page as files: CSV for tables, JSON for programs, SVG for papers."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flowrl.base.atomic_file import write_atomically
from flowrl.matched.comparison import Findings
from flowrl.matched.curves import difference_charts, measure_charts, positions, training_charts
from flowrl.matched.paired import Interval
from flowrl.matched.verdict import Verdict
from flowrl.report.figure import figure

CURVES, DIFFERENCES, RESULT, FIGURES = "curves.csv", "differences.csv", "result.json", "figures"


def write_files(found: Findings, said: Verdict, folder: Path) -> None:
    """Write curves.csv, differences.csv, result.json and figures/*.svg into `folder`, replacing what is there."""
    shutil.rmtree(folder / FIGURES, ignore_errors=True)  # of measures and arms that are no more
    (folder / FIGURES).mkdir(parents=True)
    write_atomically(folder / CURVES, _csv(_CURVE_HEAD, _curves(found)))
    write_atomically(folder / DIFFERENCES, _csv(_DIFFERENCE_HEAD, _differences(found)))
    write_atomically(folder / RESULT, (json.dumps(_result(found, said), indent=2) + "\n").encode())
    named = [
        *((chart, "") for chart in measure_charts(found, "steps")),
        *((chart, "") for chart in training_charts(found.record, "steps")),
        *((chart, "-difference") for chart in difference_charts(found)),
    ]
    for chart, ending in named:
        if any(one.points for one in chart.series):
            name = re.sub(r"[^a-z0-9]+", "-", chart.title.lower()).strip("-")
            write_atomically(folder / FIGURES / f"{name}{ending}.svg", figure(chart).encode())


_CURVE_HEAD = ("arm", "seed", "measure", "step", "images", "training_hours", "mean")
_DIFFERENCE_HEAD = (
    *("measure", "first", "second", "step", "difference", "low", "high", "seeds_low", "seeds_high"),
    *("both_low", "both_high", "prompts", "seeds", "share_of_prompts_ahead"),
)


def _curves(found: Findings) -> Iterable[Sequence[object]]:
    """A row for each arm, seed, measure and evaluated step."""
    for place, arm in enumerate(found.record.arms):
        for index, seed in enumerate(found.record.seeds):
            at = positions(arm.runs[seed])
            for measure in found.measures:
                means = measure.values[place, index].mean(axis=1).tolist()
                for step, mean in zip(measure.steps, means, strict=True):
                    yield arm.name, seed, measure.name, step, int(at.samples[step]), at.hours[step], mean


def _differences(found: Findings) -> Iterable[Sequence[object]]:
    """A row for each measure, pair of arms and step; intervals of 95 %."""
    for pair in found.comparisons:
        for step, one in zip(pair.measure.steps, pair.at, strict=True):
            yield (
                *(pair.measure.name, *pair.names, step, one.mean, *_ends(one.prompts), *_ends(one.seeds)),
                *(*_ends(one.both), len(pair.measure.prompts), len(pair.measure.seeds), one.ahead),
            )


def _ends(interval: Interval | None) -> tuple[object, object]:
    return ("", "") if interval is None else (interval.low, interval.high)


def _csv(head: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    buffer = io.StringIO()
    lines = csv.writer(buffer, lineterminator="\n")
    lines.writerow(head)
    lines.writerows(rows)
    return buffer.getvalue().encode()


def _result(found: Findings, said: Verdict) -> dict[str, Any]:
    record = found.record
    return {
        "question": record.question,
        "outcome": said.outcome,
        "verdict": [sentence.text for sentence in said.sentences],
        "problems": list(record.problems),
        "decided_by": found.decides.name if found.decides is not None else None,
        "judge": record.judge or None,
        "arms": {arm.name: list(arm.trained_rewards) for arm in record.arms},
        "seeds": list(record.seeds),
        "runs": [str(run.directory) for run in record.runs],
        "commands": [start.command for run in record.runs for start in run.starts],
        "commits": sorted({start.git_commit or "unknown" for run in record.runs for start in run.starts}),
        "measures": [
            {
                "name": measure.name,
                "trained_by": list(measure.trained_by),
                "steps": list(measure.steps),
                "prompts": len(measure.prompts),
                "means": {
                    arm: measure.values[place].mean(axis=(0, 2)).tolist() for place, arm in enumerate(measure.arms)
                },
            }
            for measure in found.measures
        ],
        "differences": [
            {"measure": pair.measure.name, "first": pair.names[0], "second": pair.names[1], "step": step} | asdict(one)
            for pair in found.comparisons
            for step, one in zip(pair.measure.steps, pair.at, strict=True)
        ],
        "over_optimisation": [asdict(one) for one in found.turnings],
        "keep": [asdict(one) for one in found.keep],
    }
