"""What a run measures: how several numbers become one, and which log keeps them; `flowrl.glossary` explains them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from flowrl.base.metric_log import MetricLog, read_metrics
from flowrl.glossary import GLOSSARY, describe, entry

if TYPE_CHECKING:
    from flowrl.types import Metric

__all__ = ["GLOSSARY", "MetricLog", "describe", "entry", "read_metrics", "reduce", "run_log"]


def reduce(metrics: Iterable[Metric]) -> dict[str, float]:
    """One number per key from many, each as its Metric says; raises ValueError when one key mixes reductions."""
    values: dict[str, list[float]] = {}
    how: dict[str, str] = {}
    for metric in metrics:
        if how.setdefault(metric.key, metric.reduce) != metric.reduce:
            raise ValueError(
                f"metric {metric.key!r} must be reduced in one way, got {how[metric.key]!r} and {metric.reduce!r}"
            )
        values.setdefault(metric.key, []).append(float(metric.value))
    reduced = {}
    for key, found in values.items():
        if how[key] == "mean":
            reduced[key] = math.fsum(found) / len(found)
        elif how[key] == "sum":
            reduced[key] = math.fsum(found)
        else:
            reduced[key] = max(found) if how[key] == "max" else found[-1]
    return reduced


# Charts that belong together in TensorBoard's "Custom Scalars" tab; the values are regular expressions on tags.
_LAYOUT = {
    "is it learning?": {
        "held-out scores": ["Multiline", [r"eval/(?!oracle|diversity)[^/]+/mean"]],
        "oracle": ["Multiline", [r"eval/oracle/mean"]],
        "oracle, part by part": ["Multiline", [r"eval/oracle_[^/]+/mean"]],
        "KL to the start": ["Multiline", [r"policy/kl"]],
        "reward while training": ["Multiline", [r"reward/[^/]+/mean"]],
        "diversity": ["Multiline", [r"eval/diversity/mean"]],
    },
    "can it be trusted?": {
        "ratio deviation": ["Multiline", [r"policy/ratio_absdev_max"]],
        "clip fraction": ["Multiline", [r"policy/clip_fraction"]],
        "gradient norm": ["Multiline", [r"policy/grad_norm"]],
        "invalid scores": ["Multiline", [r"reward/[^/]+/invalid"]],
    },
    "where does the time go?": {"phases": ["Multiline", [r"time/(?!.*busy)[^/]+_s"]]},
}


def run_log(run_dir: Path, *, resumed_step: int | None = None) -> MetricLog:
    """The log of a run, whose keys are those of the glossary; with `resumed_step`, what came after it is removed."""
    return MetricLog(run_dir, nullable=lambda key: entry(key).nullable, layout=_LAYOUT, resumed_step=resumed_step)
