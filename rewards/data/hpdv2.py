"""HPDv2 (arXiv 2306.09341): the pairs of its `train.json` and the rankings of its `test.json`.

A training row is {prompt, file_path: [a, b], human_preference: [1, 0]}, a test row {prompt, image_path: [...],
rank: [...], raw_annotations}, where a lower rank is better. Which one a row is shows by its keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rewards.data.comparison import Comparison, Row
from rewards.data.json_rows import JsonRow, RowError, read_comparisons


def read(path: Path, images: Path) -> Iterator[Row]:
    """The comparisons of one file; image paths start at `images`. `raw_annotations` are not read."""
    return read_comparisons(path, images, _comparison)


def _comparison(row: JsonRow) -> Comparison:
    if "human_preference" in row:
        files = row.texts("file_path")
        ranks = tuple(1.0 - preference for preference in row.numbers("human_preference"))
    elif "rank" in row:
        files, ranks = row.texts("image_path"), row.numbers("rank")
    else:
        raise RowError("has neither 'human_preference' (train.json) nor 'rank' (test.json)")
    images = tuple(row.image(file) for file in files)
    return Comparison(prompt=row.text("prompt"), images=images, ranks=ranks, origin=row.origin)
