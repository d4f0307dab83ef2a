"""Finds out whether the files of a model are whole, weights from their headers, before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flowrl.base.errors import CheckpointError

_MAX_HEADER = 100 * 2**20  # the limit of the safetensors format


def check_safetensors(path: Path) -> None:
    """Raise CheckpointError unless `path` is a safetensors file of just the size that its header says."""
    if not path.is_file():
        raise CheckpointError(f"{path}: this file is missing", advice="copy or download it again")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 0 < length <= min(size - 8, _MAX_HEADER):
            raise CheckpointError(f"{path}: not a safetensors file, or cut off in its header", advice="copy it again")
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            raise CheckpointError(f"{path}: its safetensors header is damaged", advice="copy it again") from None
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise CheckpointError(
            f"{path}: truncated or damaged: it holds {size} bytes of {expected}", advice="copy it again"
        )


def check_model_folder(folder: Path, stem: str) -> None:
    """Raise CheckpointError unless `folder` holds `stem.safetensors`, or every shard that its index lists, whole."""
    for file in weight_files(folder, stem):
        check_safetensors(file)


def weight_files(folder: Path, stem: str) -> list[Path]:
    """The file `stem.safetensors` in `folder`, or the shards that `stem.safetensors.index.json` lists; they need not be
    there. Raises CheckpointError when the index is damaged.
    """
    index = folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        return [folder / f"{stem}.safetensors"]
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(n, str) for n in weight_map.values()):
        raise CheckpointError(f"{index}: not an index of weight files", advice="copy it again")
    return [folder / name for name in sorted(set(weight_map.values()))]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises CheckpointError when the file is missing or holds anything else."""
    if not path.is_file():
        raise CheckpointError(f"{path}: this file is missing", advice="copy or download it again")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})", advice="copy it again") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: must hold a JSON object, got {type(data).__name__}", advice="copy it again")
    return data
