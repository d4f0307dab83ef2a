"""The log of what a run measures: one line per step in metrics.jsonl, and the same numbers in TensorBoard."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import torch


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics.jsonl, each with its `step`; undefined values are absent, a torn last line is dropped.

    A file that does not exist has no lines. Raises ValueError for a broken line that is not the last.
    """
    return [row for _, row in _read(path)]


def _read(path: Path) -> list[tuple[str, dict[str, float]]]:
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = {key: float(value) for key, value in json.loads(line).items() if value is not None}
            rows.append((line, row | {"step": int(row["step"])}))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if any(rest.strip() for rest in lines[number:]):
                raise ValueError(f"{path}: line {number} must be a JSON object with a step: {error}") from None
    return rows


class MetricLog:
    """Appends one line per step to metrics.jsonl and the same numbers to TensorBoard.

    `nullable` says whether a key may be undefined, and raises KeyError for one that it does not know; `layout` groups
    charts in TensorBoard's "Custom Scalars" tab, its values are regular expressions on tags. With `resumed_step`, lines
    after that step are removed first, in both. A crash loses at most the line being written: lines are flushed one by
    one but not forced to the disk.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        nullable: Callable[[str], bool],
        layout: dict[str, dict[str, list[Any]]],
        resumed_step: int | None = None,
    ) -> None:
        from torch.utils.tensorboard import (
            SummaryWriter,  # slow to import, and needed here alone
        )

        self._nullable = nullable
        self._path = run_dir / "metrics.jsonl"
        self._last_step = -1
        if resumed_step is not None:
            self._truncate(resumed_step)
        self._file = self._path.open("a", encoding="utf-8")
        purge = None if resumed_step is None else resumed_step + 1
        self._writer = SummaryWriter(str(run_dir / "tb"), purge_step=purge)
        if resumed_step is None:
            self._writer.add_custom_scalars(layout)

    def _truncate(self, resumed_step: int) -> None:
        kept = [(line, int(row["step"])) for line, row in _read(self._path) if row["step"] <= resumed_step]
        self._last_step = kept[-1][1] if kept else -1
        aside = self._path.with_name(".metrics.jsonl.new")
        aside.write_text("".join(line + "\n" for line, _ in kept), encoding="utf-8")
        aside.replace(self._path)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write the numbers of one step; an undefined (NaN) one becomes null where that is allowed.

        Raises KeyError for an unknown key, ValueError for other values that are not finite and for a
        step that is not after the last one.
        """
        if step <= self._last_step:
            raise ValueError(f"steps must be logged once and in order, got step {step} after step {self._last_step}")
        row: dict[str, float | None] = {"step": step}
        for key, value in values.items():
            may_be_undefined = self._nullable(key)
            number = float(value)
            if math.isnan(number) and may_be_undefined:
                row[key] = None
            elif not math.isfinite(number):
                raise ValueError(f"metric {key} of step {step} must be finite, got {number}")
            else:
                row[key] = number
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        self._last_step = step
        for key, logged in row.items():
            if key != "step" and logged is not None:
                self._writer.add_scalar(key, logged, step)
        self._writer.flush()

    def images(self, tag: str, step: int, grid: torch.Tensor) -> None:
        """Show an image grid, [3, H, W] uint8, in TensorBoard."""
        self._writer.add_image(tag, grid, step)

    def text(self, tag: str, step: int, text: str) -> None:
        """Show a text (Markdown) in TensorBoard."""
        self._writer.add_text(tag, text, step)

    def close(self) -> None:
        """Finish both files."""
        self._file.close()
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
