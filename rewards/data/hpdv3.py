"""HPDv3 (arXiv 2508.03789): pairs as `train.json` and `test.json` of the published dataset hold them.

A row is {prompt, path1, path2, confidence, choice_dist, model1, model2}; `path1` is the preferred image.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rewards.data.comparison import Comparison, Row
from rewards.data.json_rows import JsonRow, read_comparisons


def read(path: Path, images: Path) -> Iterator[Row]:
    """The pairs of one file; image paths start at `images`.

    A pair whose confidence is null or missing counts as sure (inferred: nothing published says how to take it).
    """
    return read_comparisons(path, images, _pair)


def _pair(row: JsonRow) -> Comparison:
    return Comparison(
        prompt=row.text("prompt"),
        images=(row.image(row.text("path1")), row.image(row.text("path2"))),
        ranks=(0.0, 1.0),
        origin=row.origin,
        confidence=row.number("confidence", default=1.0),
    )
