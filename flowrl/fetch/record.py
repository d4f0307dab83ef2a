"""What was fetched into a folder: a small file there, by which it can be verified later without a network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowrl.base.atomic_file import write_atomically
from flowrl.base.errors import CheckpointError
from flowrl.base.weight_files import read_json
from flowrl.fetch.published import FetchError

RECORD = ".flowrl-fetch.json"


@dataclass(frozen=True, kw_only=True)
class Expected:
    """The size and the checksum that a file of a folder must have.

    Example: ``Expected(size=809, digest="git-sha1:...")``
    """

    size: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class Record:
    """By the label of a part its files, by their names in its repository; written before they arrive.

    Example: ``read_record(Path("models/HPSv3")).parts["huggingface.co/MizzenAI/HPSv3"]``
    """

    parts: Mapping[str, Mapping[str, Expected]] = field(default_factory=dict)


def read_record(folder: Path) -> Record:
    """The record of a folder, empty where nothing was fetched into it; raises FetchError when it is damaged."""
    file = folder / RECORD
    if not file.is_file():
        return Record()
    try:
        parts: dict[str, Any] = read_json(file)["parts"]
        return Record(
            parts={
                label: {name: Expected(size=int(one["size"]), digest=str(one["digest"])) for name, one in files.items()}
                for label, files in parts.items()
            }
        )
    except (CheckpointError, KeyError, TypeError, ValueError, AttributeError):
        raise FetchError(f"{file}: damaged; remove it, and what is in the folder is compared with its source") from None


def add_to_record(folder: Path, more: Mapping[str, Mapping[str, Expected]]) -> None:
    """Note what files of some parts must be there, by label and name; what is noted of others stays as it is."""
    parts = {label: dict(files) for label, files in read_record(folder).parts.items()}
    for label, files in more.items():
        parts.setdefault(label, {}).update(files)
    content = {
        name: {file: {"size": one.size, "digest": one.digest} for file, one in sorted(those.items())}
        for name, those in sorted(parts.items())
    }
    write_atomically(folder / RECORD, (json.dumps({"parts": content}, indent=1) + "\n").encode())
