"""What is missing or cut off in a folder, found out without a network and without reading weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from flowrl.base.errors import CheckpointError
from flowrl.base.weight_files import check_safetensors, read_json, weight_files
from flowrl.fetch.sources import Bundle


def faults_of(path: Path, bundle: Bundle | None, *, is_file: bool) -> Iterator[str]:
    """What is seen to be wrong with a need at `path`, one sentence each: a file that is missing, empty or cut off.

    A safetensors file is judged by its size and the one that its header says, a JSON file by being one.
    """
    if is_file or bundle is None:
        if not path.exists():
            yield f"{path}: not there"
        elif not any(path.iterdir()) if path.is_dir() else path.stat().st_size == 0:
            yield f"{path}: empty"
        return
    if not path.is_dir():
        yield f"{path}: no such folder"
        return
    missing = [name for part in bundle.parts for name in part.files if not (path / name).is_file()]
    yield from (f"{path / name}: missing" for name in missing)
    yield from _damaged(path, bundle)


def check_file(file: Path) -> None:
    """Raise CheckpointError when a file is seen to be damaged: weights that are not as long as their header says, or a
    JSON file that is none.
    """
    if file.suffix == ".safetensors":
        check_safetensors(file)
    elif file.suffix == ".json":
        read_json(file)


def _damaged(folder: Path, bundle: Bundle) -> Iterator[str]:
    """What is wrong with the files that are there, and with weights that may lie in shards; what else lies in the
    folder, such as a checkpoint for another program, is not looked at.
    """
    there = (file for end in ("json", "safetensors") for file in folder.rglob(f"*.{end}"))
    found = {file for file in there if any(part.takes(str(file.relative_to(folder))) for part in bundle.parts)}
    for stem in (folder / name for part in bundle.parts for name in part.weights):
        with contextlib.suppress(CheckpointError):  # of its index, which is no JSON and so named below
            found.update(weight_files(stem.parent, stem.name))
    for file in sorted(found):
        try:
            check_file(file)
        except CheckpointError as error:
            yield str(error)
