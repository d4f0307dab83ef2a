"""Pick-a-Pic v1 (arXiv 2305.01569): pairs in parquet files that hold the images, with the tie as a third label.

Columns: caption, jpg_0 and jpg_1 (bytes), label_0 and label_1 in {0, 0.5, 1}, has_label, are_different,
num_example_per_prompt, image_0_uid and image_1_uid. The images stay where they are until they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rewards.data.comparison import BadRow, Comparison, ImageRef, Row, SkippedRow
from rewards.data.parquet_files import parquet_files, read_columns

_NEEDED = ("caption", "label_0", "label_1")
_COLUMNS = (*_NEEDED, "has_label", "are_different", "num_example_per_prompt", "image_0_uid", "image_1_uid")
_LABELS = (0.0, 0.5, 1.0)


def read(path: str) -> Iterator[Row]:
    """The pairs of a file, a folder or a pattern of files.

    As published, each pair weighs 1 / num_example_per_prompt, so that every prompt counts alike. Rows without a label,
    and those whose images are the same, are skipped. Raises UserError without pyarrow or on files it cannot read.
    """
    for file in parquet_files(path):
        for number, values in enumerate(read_columns(file, _COLUMNS, _NEEDED)):
            yield _row(values, str(file.absolute()), number, f"{file.name}[{number}]")


def _row(values: Mapping[str, Any], path: str, number: int, origin: str) -> Row:
    if values.get("has_label") is False:
        return SkippedRow(origin=origin, reason="no label")
    if values.get("are_different") is False:
        return SkippedRow(origin=origin, reason="the images are the same")
    caption, labels = values["caption"], (values["label_0"], values["label_1"])
    if not isinstance(caption, str):
        return BadRow(origin=origin, reason="caption must be text")
    if any(label not in _LABELS for label in labels) or sum(labels) != 1:
        return BadRow(origin=origin, reason=f"the labels must be 0 and 1 or both 0.5, got {labels[0]} and {labels[1]}")
    examples = values.get("num_example_per_prompt", 1)
    if not isinstance(examples, int) or examples < 1:
        return BadRow(origin=origin, reason=f"num_example_per_prompt must be at least 1, got {examples}")
    images = tuple(
        ImageRef(path=path, row=number, column=f"jpg_{side}", uid=str(values.get(f"image_{side}_uid") or ""))
        for side in (0, 1)
    )
    return Comparison(
        prompt=caption,
        images=images,
        ranks=(1.0 - labels[0], 1.0 - labels[1]),
        origin=origin,
        weight=1 / examples,
    )
