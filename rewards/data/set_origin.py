"""What a prepared set is made of and with, kept beside its shards, so that nothing else is mixed in by a later run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from flowrl.base.atomic_file import write_atomically
from flowrl.base.config_tree import ConfigError
from flowrl.base.errors import CheckpointError
from flowrl.base.folder_lock import make_writable
from flowrl.base.weight_files import read_json
from flowrl.core.buckets import BucketPlan
from rewards.data.store import INFO

_SETTINGS, _SCAN = "settings.json", "scan.sha256"


def begin(folder: Path, settings: dict[str, Any]) -> None:
    """Raise ConfigError when the folder holds something else, or a set or a part of one with other settings."""
    begun = (folder / INFO).is_file() or any((folder / kind).is_dir() for kind in ("samples", "conditions"))
    if begun and (folder / _SETTINGS).is_file():
        check_settings(folder, settings)
        return
    if (folder / INFO).is_file():
        return  # a set that was made elsewhere
    held = {file.name for file in folder.iterdir() if not file.name.startswith(".")} if folder.is_dir() else set()
    if held - {_SETTINGS, _SCAN}:
        raise ConfigError(f"{folder}: holds other files; set data.store to a new or empty folder")
    make_writable(folder, "data.store")
    (folder / _SCAN).unlink(missing_ok=True)  # of a start that came to no shard
    write_atomically(folder / _SETTINGS, f"{json.dumps(settings, indent=1)}\n".encode())


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


def check_scan(folder: Path, digest: str) -> None:
    """Raise ConfigError when shards may have been written of another scan: their rows would be other samples."""
    file = folder / _SCAN
    if not file.is_file():
        write_atomically(file, digest.encode())
    if file.read_text(encoding="utf-8") != digest:
        raise ConfigError(
            f"{folder}: the sources are not what they were when this set was begun; remove it to prepare anew"
        )


def prepared_buckets(folder: Path) -> BucketPlan | None:
    """The sizes that the images of a set were brought to; None for one that came without its settings."""
    if not (folder / _SETTINGS).is_file():
        return None
    try:
        return BucketPlan(**read_json(folder / _SETTINGS)["buckets"])
    except (KeyError, TypeError):
        raise CheckpointError(
            f"{folder / _SETTINGS}: must say the buckets of the images; prepare the set again"
        ) from None
