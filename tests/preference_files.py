"""Writes tiny preference datasets in the published formats; of two images of a prompt the brighter one is preferred."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIZES = ((64, 64), (48, 80), (80, 48))  # height and width, in turn by prompt
THINGS = ("cat", "dog", "tree", "red house", "boat at sea")
_STEP = 40  # of brightness between neighbours in a ranking


def picture(*, height: int = 64, width: int = 64, brightness: int = 128, seed: int = 0) -> Image.Image:
    """Noise of a few levels about a brightness in [16, 239]."""
    noise = np.random.default_rng(seed).integers(-16, 17, (height, width, 3))
    return Image.fromarray((noise + brightness).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def prompt_of(row: int) -> str:
    """The prompt of a row; two rows in turn share one."""
    return f"a {THINGS[row // 2 % len(THINGS)]} number {row // 2}"


def ranked_pictures(row: int, count: int, seed: int) -> tuple[list[Image.Image], list[int]]:
    """The images of a row and their ranks, 1 the best, in an order that the seed shuffles."""
    generator = np.random.default_rng([seed, row])
    ranks = [int(rank) for rank in generator.permutation(count) + 1]
    height, width = SIZES[row // 2 % len(SIZES)]
    images = [
        picture(height=height, width=width, brightness=220 - _STEP * (rank - 1), seed=1000 * seed + 10 * row + rank)
        for rank in ranks
    ]
    return images, ranks


def save_ranked(folder: Path, row: int, count: int, seed: int) -> tuple[list[str], list[int]]:
    """The images of a row as files, JPEG and PNG in turn: their paths relative to `folder`, and their ranks."""
    images, ranks = ranked_pictures(row, count, seed)
    names = [f"images/{row:05d}-{place}.{'jpg' if row % 2 else 'png'}" for place in range(count)]
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for name, image in zip(names, images, strict=True):
        image.save(folder / name)
    return names, ranks


def best_first(names: Sequence[str], ranks: Sequence[int]) -> list[str]:
    """Names in the order of their ranks."""
    return [name for _, name in sorted(zip(ranks, names, strict=True))]


def write_json(path: Path, rows: Sequence[object]) -> Path:
    """A file that holds one array, or with the ending .jsonl one row on each line."""
    lines = [json.dumps(row) for row in rows]
    text = "\n".join(lines) + "\n" if path.suffix == ".jsonl" else "[\n" + ",\n".join(lines) + "\n]\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def read_rows(path: Path) -> list[Any]:
    """The rows of a file that `write_json` wrote."""
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)


def add_rows(path: Path, *rows: object) -> Path:
    """Append rows, broken ones for instance, to a file that `write_json` wrote."""
    return write_json(path, [*read_rows(path), *rows])


def write_hpdv3(folder: Path, *, num: int = 8, seed: int = 0) -> Path:
    """`train.json` of HPDv3; every fourth confidence is null, the others grow from 0.6."""
    rows = []
    for row in range(num):
        better, worse = best_first(*save_ranked(folder, row, 2, seed))
        rows.append(
            {
                "prompt": prompt_of(row),
                "path1": better,
                "path2": worse,
                "confidence": None if row % 4 == 3 else round(0.6 + 0.4 * row / num, 3),
                "choice_dist": [9, 1],
                "model1": "kolors",
                "model2": "sd2",
            }
        )
    return write_json(folder / "train.json", rows)


def write_hpdv2_train(folder: Path, *, num: int = 8, seed: int = 0) -> Path:
    """`train.json` of HPDv2."""
    rows = []
    for row in range(num):
        names, ranks = save_ranked(folder, row, 2, seed)
        preference = [2 - rank for rank in ranks]
        rows.append({"human_preference": preference, "prompt": prompt_of(row), "file_path": names, "user_hash": "a"})
    return write_json(folder / "train.json", rows)


def write_hpdv2_test(folder: Path, *, num: int = 4, num_images: int = 4, seed: int = 0) -> Path:
    """`test.json` of HPDv2: rankings."""
    rows = []
    for row in range(num):
        names, ranks = save_ranked(folder, row, num_images, seed)
        rows.append({"prompt": prompt_of(row), "image_path": names, "rank": ranks, "raw_annotations": [[1, 2]]})
    return write_json(folder / "test.json", rows)


def write_image_reward(folder: Path, *, num: int = 4, num_images: int = 4, seed: int = 0) -> Path:
    """`test.json` of ImageReward: rankings whose two worst images are tied."""
    rows = []
    for row in range(num):
        names, ranks = save_ranked(folder, row, num_images, seed)
        tied = [min(rank, num_images - 1) for rank in ranks]
        rows.append({"id": f"{row:06d}-0001", "prompt": prompt_of(row), "generations": names, "ranking": tied})
    return write_json(folder / "test.json", rows)


def write_jsonl(folder: Path, *, num: int = 8, seed: int = 0) -> Path:
    """`pairs.jsonl` of the plain format, with categories; every fourth pair is a tie."""
    rows: list[dict[str, object]] = []
    for row in range(num):
        better, worse = best_first(*save_ranked(folder, row, 2, seed))
        line: dict[str, object] = {"prompt": prompt_of(row), "preferred": better, "rejected": worse}
        rows.append(
            line | {"category": "animal" if row // 2 % 5 < 2 else "other"} | ({"tie": True} if row % 4 == 3 else {})
        )
    return write_json(folder / "pairs.jsonl", rows)


def pick_a_pic_row(row: int, *, seed: int = 0) -> dict[str, object]:
    """One row of Pick-a-Pic; every fourth is a tie, every eighth has no label."""
    images, ranks = ranked_pictures(row, 2, seed)
    labels = (0.5, 0.5) if row % 4 == 3 else tuple(float(2 - rank) for rank in ranks)
    return {
        "caption": prompt_of(row),
        "jpg_0": encoded(images[0], "JPEG"),
        "jpg_1": encoded(images[1], "JPEG"),
        "label_0": labels[0],
        "label_1": labels[1],
        "has_label": row % 8 != 6,
        "are_different": True,
        "num_example_per_prompt": 2,
        "image_0_uid": f"uid-{seed}-{row}-0",
        "image_1_uid": f"uid-{seed}-{row}-1",
    }


def write_parquet(path: Path, rows: Sequence[Mapping[str, object]], *, row_group_size: int = 5) -> Path:
    """Rows as a parquet file of small row groups."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path, row_group_size=row_group_size)
    return path


def write_pick_a_pic(folder: Path, *, num: int = 16, seed: int = 0) -> Path:
    """A folder `data` of two files of Pick-a-Pic's training split."""
    rows = [pick_a_pic_row(row, seed=seed) for row in range(num)]
    half = num // 2
    for index, part in enumerate((rows[:half], rows[half:])):
        write_parquet(folder / "data" / f"train-{index:05d}-of-00002.parquet", part)
    return folder / "data"
