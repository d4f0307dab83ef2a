"""What a prepared set is made of and with, kept beside its shards, so that nothing else is mixed in by a later run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from flowrl.base.atomic_file import write_atomically
from flowrl.base.config_tree import ConfigError
from flowrl.base.errors import CheckpointError, UserError
from flowrl.base.folder_lock import make_writable, wait_for_lock
from flowrl.base.weight_files import read_json
from flowrl.core.buckets import BucketPlan
from rewards.data.source import DataSource
from rewards.data.source_files import FileStamp, difference, source_stamps
from rewards.data.store import INFO

_SETTINGS = "settings.json"
_SCAN = "scan"  # the key of the digest of what the sources held
_FILES = "files"  # the key of the stamps of the sources' files, a list for each source


def choices(sources: list[DataSource], buckets: BucketPlan, dtype: torch.dtype) -> dict[str, Any]:
    """The settings of a set that its configuration makes."""
    # The weights of sources shape the training alone. How many images are encoded at once is left out as well: it
    # moves latents in their last float32 bits, as another device does; of those that are kept as bfloat16 about one in
    # 3,000 then rounds the other way.
    taken = [{name: value for name, value in asdict(source).items() if name != "weight"} for source in sources]
    return {"sources": taken, "buckets": asdict(buckets), "dtype": str(dtype)}


def check_choices(folder: Path, sources: list[DataSource], buckets: BucketPlan, dtype: torch.dtype) -> None:
    """Raise ConfigError where a set was prepared from other sources (their weights apart), in other buckets or as
    another dtype; a set that came without its settings is taken as it is.
    """
    check_settings(folder, choices(sources, buckets, dtype))


def check_files(folder: Path, sources: list[DataSource]) -> None:
    """Raise ConfigError when a file of the sources that a set was prepared from has changed since.

    A source of which no file is there any more is passed, and so is a set that came without the stamps of its files.
    """
    held = read_json(folder / _SETTINGS).get(_FILES) if (folder / _SETTINGS).is_file() else None
    if held is None:
        return
    for stamps, source in zip(held, sources, strict=True):
        found = source_stamps(source)
        if found and (words := difference([FileStamp(**stamp) for stamp in stamps], found)):
            raise ConfigError(
                f"{folder}: {words} since this set was prepared; remove it to prepare anew, or, to use the set as it "
                "is, name no sources"
            )


def check_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Raise ConfigError when the folder holds something else, or a set or a part of one with other settings."""
    if (folder / _SETTINGS).is_file():
        check_settings(folder, settings)
        return
    if (folder / INFO).is_file():
        return  # a set that was made elsewhere
    if folder.is_dir() and any(not file.name.startswith(".") for file in folder.iterdir()):
        raise ConfigError(f"{folder}: holds other files; set data.store to a new or empty folder")
    make_writable(folder, "data.store")


def settle(
    folder: Path, settings: dict[str, Any], scan: str, files: Sequence[Sequence[FileStamp]] | None = None
) -> None:
    """Make the folder a set of these settings and of a scan with this digest, before its first shard is written.

    `files` are the stamps of each source's files from before the scan; None for a set that was read from none.

    The first process to come here decides for all; raises ConfigError in one that comes with others, whose shards would
    hold other samples under the same numbers.
    """
    with wait_for_lock(folder):
        if not (folder / _SETTINGS).is_file():
            origin = settings | {_SCAN: scan}
            if files is not None:
                origin |= {_FILES: [[asdict(stamp) for stamp in stamps] for stamps in files]}
            write_atomically(folder / _SETTINGS, f"{json.dumps(origin, indent=1)}\n".encode())
    check_settings(folder, settings)
    if read_json(folder / _SETTINGS).get(_SCAN) != scan:
        raise ConfigError(
            f"{folder}: the sources are not what they were when this set was begun; remove it to prepare anew"
        )


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Raise ConfigError naming the settings that a set was made with otherwise; one without settings.json passes."""
    if not (folder / _SETTINGS).is_file():
        return
    wanted = json.loads(json.dumps(settings))
    held = read_json(folder / _SETTINGS)
    changed = [key for key, value in wanted.items() if held.get(key) != value]
    if changed:
        digest = hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:8]
        raise ConfigError(
            f"{folder}: was prepared with other data settings ({', '.join(changed)}); remove it to prepare anew, set "
            f"data.store to another folder, such as {folder.parent}-{digest}, or, to use the set as it is, name no "
            "sources"
        )


def prepared_buckets(folder: Path) -> BucketPlan | None:
    """The sizes that the images of a set were brought to; None for one that came without its settings.

    Raises CheckpointError when the settings do not say them.
    """
    if not (folder / _SETTINGS).is_file():
        return None
    try:
        return BucketPlan(**read_json(folder / _SETTINGS)["buckets"])
    except (KeyError, TypeError, UserError):
        raise CheckpointError(
            f"{folder / _SETTINGS}: must say the buckets of the images; prepare the set again"
        ) from None
