"""ImageReward's rankings (arXiv 2304.05977): `test.json` of its repository and files of that shape.

A row is {id, prompt, generations: [...], ranking: [...]}; a lower ranking is better, and equal ones are ties.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rewards.data.comparison import Comparison, Row
from rewards.data.json_rows import JsonRow, read_comparisons


def read(path: Path, images: Path) -> Iterator[Row]:
    """The rankings of one file; image paths start at `images`."""
    return read_comparisons(path, images, _ranking)


def _ranking(row: JsonRow) -> Comparison:
    return Comparison(
        prompt=row.text("prompt"),
        images=tuple(row.image(file) for file in row.texts("generations")),
        ranks=row.numbers("ranking"),
        origin=row.origin,
    )
