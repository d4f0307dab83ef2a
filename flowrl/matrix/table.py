"""How far the runs of an experiment have come, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from flowrl.base.metric_log import read_metrics
from flowrl.config import RunConfig
from flowrl.matrix.manifest import Element
from flowrl.matrix.progress import begun, finished, steps_logged
from flowrl.report.wording import duration

State = Literal["waiting", "begun", "running", "failed", "done"]
_HEADER = ("run", "state", "steps", "per step", "in all", "held-out, first to newest")


@dataclass(frozen=True, kw_only=True)
class Row:
    """What the folder of one run says."""

    name: str
    state: State
    done: int  # steps
    steps: int
    step_s: float | None  # mean seconds of a step; None before the first
    spent_s: float  # on steps, evaluations and checkpoints
    scores: str  # of the rewards that are trained on, held-out

    @property
    def left_s(self) -> float | None:
        """Seconds that the steps which are left will take at this pace; None while that is unknown."""
        return None if self.step_s is None else (self.steps - self.done) * self.step_s


def row_of(element: Element, config: RunConfig, *, state: State | None = None) -> Row:
    """The row of a run; `state` is what the caller knows better than its folder."""
    rows = read_metrics(element.dir / "metrics.jsonl")
    seconds = [row["time/step_s"] for row in rows if "time/step_s" in row]
    more = sum(row.get(f"time/{phase}_s", 0.0) for row in rows for phase in ("eval", "checkpoint"))
    if finished(element.dir, config.run.steps):
        state = "done"
    return Row(
        name=element.name,
        state=state or ("begun" if begun(element.dir) else "waiting"),
        done=steps_logged(element.dir),
        steps=config.run.steps,
        step_s=sum(seconds) / len(seconds) if seconds else None,
        spent_s=sum(seconds) + more,
        scores=", ".join(_scores(rows, spec.metric_name) for spec in config.rewards.train),
    )


def table(rows: Sequence[Row]) -> str:
    """The rows under a header, and what is left of all of them."""
    cells = [_HEADER, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEADER))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([*lines, _left(rows)]) + "\n"


def _cells(row: Row) -> tuple[str, ...]:
    pace = "" if row.step_s is None else duration(row.step_s)
    spent = duration(row.spent_s) if row.spent_s else ""
    return row.name, row.state, f"{row.done}/{row.steps}", pace, spent, row.scores


def _left(rows: Sequence[Row]) -> str:
    """How many are done, and at the pace of those that have begun how long the others take."""
    done = sum(row.state == "done" for row in rows)
    known = [row.step_s for row in rows if row.step_s is not None]
    if done == len(rows) or not known:
        return f"{done} of {len(rows)} runs are done"
    pace = sum(known) / len(known)
    left = sum((row.steps - row.done) * (row.step_s or pace) for row in rows)
    return f"{done} of {len(rows)} runs are done; steps for {duration(left)} are left, beside evaluations"


def _scores(rows: list[dict[str, float]], name: str) -> str:
    means = [row[key] for row in rows if (key := f"eval/{name}/mean") in row]
    if not means:
        return ""
    return f"{name} {means[0]:.3f}" + (f" to {means[-1]:.3f}" if len(means) > 1 else "")
