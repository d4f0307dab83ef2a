"""How far the run in a folder has come."""

from __future__ import annotations

from pathlib import Path

from flowrl.base import checkpoint
from flowrl.base.metric_log import read_metrics


def begun(folder: Path) -> bool:
    """Whether a run has begun there, so that it is resumed and not started."""
    return (folder / "config.yaml").is_file()


def steps_done(folder: Path) -> int:
    """The step of its newest whole checkpoint, 0 without one."""
    found, _ = checkpoint.newest(folder / "checkpoints")
    return 0 if found is None else checkpoint.step_of(found)


def steps_logged(folder: Path) -> int:
    """The last step of which there are figures, 0 before the first."""
    rows = read_metrics(folder / "metrics.jsonl")
    return int(rows[-1]["step"]) if rows else 0


def finished(folder: Path, steps: int) -> bool:
    """Whether all of its steps were done and its adapter was exported."""
    return (folder / "lora").is_dir() and any((folder / "lora").iterdir()) and steps_logged(folder) == steps
