"""flowrl's own plain format: one JSON object a line, for whoever brings preferences of their own.

A line is {"prompt", "preferred", "rejected"} with image paths, or {"prompt", "images": [...], "ranks": [...]} where a
lower rank is better. Both may have "confidence" in [0, 1] and "category"; a pair may be a "tie": true.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rewards.data.comparison import Comparison, Row
from rewards.data.json_rows import JsonRow, read_comparisons


def read(path: Path, images: Path) -> Iterator[Row]:
    """The comparisons of one file; image paths start at `images`. Other keys are ignored."""
    return read_comparisons(path, images, _comparison)


def _comparison(row: JsonRow) -> Comparison:
    if "images" in row:
        files, ranks = row.texts("images"), row.numbers("ranks")
    else:
        files = (row.text("preferred"), row.text("rejected"))
        ranks = (0.0, 0.0) if "tie" in row and row.flag("tie") else (0.0, 1.0)
    return Comparison(
        prompt=row.text("prompt"),
        images=tuple(row.image(file) for file in files),
        ranks=ranks,
        origin=row.origin,
        confidence=row.number("confidence", default=1.0),
        category=row.text("category") if "category" in row else "",
    )
