"""What a run cost: time by phase, bytes moved, memory."""

from __future__ import annotations

from dataclasses import dataclass

from flowrl.base.amounts import size
from flowrl.report.run_record import RunRecord

PHASES = ("encode", "rollout", "score", "advantages", "update", "sync")
_BESIDE = ("eval", "checkpoint")  # come on top of a step, and not after every one
TRAFFIC = ("trajectories", "weights")
BUSY = {"rollout": "rollout actors", "score": "scorers", "decode": "decoding"}


@dataclass(frozen=True, kw_only=True)
class PhaseRow:
    """The time of one phase.

    Example: 60 steps with a rollout of 3 s each are ``PhaseRow(name="rollout", mean=3.0, total=180.0, share=0.4)``.
    """

    name: str
    mean: float  # seconds, each time the phase ran
    total: float  # seconds
    share: float  # of all that the run spent


@dataclass(frozen=True, kw_only=True)
class TrafficRow:
    """The bytes of one kind, in words."""

    name: str
    mean: str  # per training step
    total: str


def phase_rows(record: RunRecord) -> list[PhaseRow]:
    """Every phase that took time, then what its steps spent outside of any phase."""
    totals: dict[str, tuple[float, int]] = {}
    for name in (*PHASES, *_BESIDE):
        seconds = [value for _, value in record.series(f"time/{name}_s")]
        if seconds and sum(seconds) > 0:
            totals[name] = (sum(seconds), sum(value > 0 for value in seconds))
    steps = [value for _, value in record.series("time/step_s")]
    rest = sum(steps) - sum(totals[name][0] for name in PHASES if name in totals)
    if steps and rest > 0.005 * sum(steps):
        totals["everything else"] = (rest, len(steps))
    spent = sum(total for total, _ in totals.values())
    return [
        PhaseRow(name=name, mean=total / count, total=total, share=total / spent)
        for name, (total, count) in totals.items()
    ]


def traffic_rows(record: RunRecord) -> list[TrafficRow]:
    """What moved between the parts."""
    rows = []
    for kind in TRAFFIC:
        mean = mean_of(record, f"bytes/{kind}")
        if mean is not None:
            total = sum(value for _, value in record.series(f"bytes/{kind}"))
            rows.append(TrafficRow(name=kind, mean=size(mean), total=size(total)))
    return rows


def mean_of(record: RunRecord, key: str) -> float | None:
    """The mean of a metric over the training steps; None where it was not logged."""
    values = [value for step, value in record.series(key) if step > 0]
    return sum(values) / len(values) if values else None


def peak_memory(record: RunRecord) -> float | None:
    """The most memory that driver and actors held together, in GiB; None where it was not logged."""
    return max((value for _, value in record.series("memory/peak_gib")), default=None)


def cost_facts(record: RunRecord) -> list[tuple[str, str]]:
    """Figures that a table has no place for."""
    facts = []
    if (speed := mean_of(record, "speed/images_per_s")) is not None:
        facts.append(("Training speed", f"{speed:.3g} images per second"))
    if (step := mean_of(record, "time/step_s")) is not None:
        facts.append(("Training step", f"{step:.3g} s"))
    for name, words in BUSY.items():
        busy = mean_of(record, f"time/{name}_busy_s")
        if busy is not None:
            facts.append((f"Busy per step, {words}", f"{busy:.3g} s"))
    if (peak := peak_memory(record)) is not None:
        facts.append(("Peak memory, driver and actors", f"{peak:.3g} GiB"))
    return facts
