"""What a reward training logs."""

from __future__ import annotations

from pathlib import Path

from flowrl.base.metric_log import MetricLog

MEANINGS = {
    "train/loss": "Weighted mean loss of the step's pairs.",
    "train/accuracy": "Share of the step's pairs, ties left out, that were scored in the right order, before the step.",
    "train/grad_norm": "Norm of the gradient before clipping.",
    "train/lr_factor": "Share of the base learning rates that this step was taken with.",
    "validation/accuracy": "Share of the validation pairs, ties left out, that are scored in the right order.",
    "validation/loss": "Mean Bradley-Terry loss of the validation pairs.",
    "time/step_s": "Seconds of the step.",
    "time/validation_s": "Seconds of the validation.",
}
_NULLABLE = ("train/accuracy",)
_BY = ("validation/source/", "validation/category/")
_LAYOUT = {
    "is it learning?": {
        "accuracy": ["Multiline", ["train/accuracy", "validation/accuracy"]],
        "loss": ["Multiline", ["train/loss", "validation/loss"]],
        "accuracy by source": ["Multiline", ["validation/source/.*"]],
        "accuracy by category": ["Multiline", ["validation/category/.*"]],
    }
}


def open_log(folder: Path, *, resumed_step: int | None) -> MetricLog:
    """The log of a training; with `resumed_step`, what came after it is removed."""
    return MetricLog(folder, nullable=_is_nullable, layout=_LAYOUT, resumed_step=resumed_step)


def _is_nullable(key: str) -> bool:
    if key not in MEANINGS and not key.startswith(_BY):
        raise KeyError(f"metric {key!r} has no explanation in rewards.training.log")
    return key in _NULLABLE
