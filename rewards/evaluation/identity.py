"""What scores depend on, as far as names and files say it: scores on disk are found again by this alone."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flowrl.base.embedded import EMBEDDED, POCKET
from flowrl.base.weight_files import read_json
from flowrl.models.latent_inputs import EncoderSetting
from rewards.data.parquet_files import parquet_files
from rewards.data.source import DataSource


def file_stamp(path: Path) -> str:
    """A digest of name, size and time of each file at a path, a file or a folder; empty when nothing is there."""
    files = [path] if path.is_file() else sorted(path.rglob("*")) if path.is_dir() else []
    stats = [(str(file.relative_to(path)), file.stat()) for file in files if file.is_file()]
    listed = [f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats]
    return hashlib.blake2b("\n".join(listed).encode(), digest_size=8).hexdigest() if listed else ""


def reward_identity(name: str, options: Mapping[str, Any]) -> dict[str, Any] | None:
    """A reward's name, its options and the state of its files; None when files do not say what it is, as of a server.

    Its files are those that an option names, with the folder that the config.json of one names as its base, the
    embedded checkpoints where these may be used, and the code of a class that is named by its path.
    """
    texts = {option: value for option, value in options.items() if value and isinstance(value, str)}
    if any("://" in value for value in texts.values()):
        return None
    files = {option: [file_stamp(path) for path in _with_base(Path(value))] for option, value in texts.items()}
    if "path" not in texts or POCKET in texts.values():
        files["embedded"] = [file_stamp(EMBEDDED)]
    module, of_class, _ = name.partition(":")
    if of_class and (found := importlib.util.find_spec(module)) is not None and found.origin:
        files["code"] = [file_stamp(Path(found.origin))]
    return {"name": name, "options": dict(options), "files": files}


def _with_base(path: Path) -> list[Path]:
    """A path, and the model folder that a reward's folder at it was trained from, which may hold its backbone."""
    config = path / "config.json"
    base = read_json(config).get("base") if config.is_file() else None
    if not isinstance(base, str) or not base:
        return [path]
    return [path, EMBEDDED if base == POCKET else Path(base)]


def encoders_identity(setting: EncoderSetting) -> dict[str, Any]:
    """What decides what the encoders make of an image and a text; the device does not."""
    return {
        "files": file_stamp(setting.path),
        "max_sequence_length": setting.max_sequence_length,
        "buckets": asdict(setting.buckets) if setting.buckets is not None else None,
        "dtype": str(setting.dtype),
    }


def source_identity(source: DataSource) -> dict[str, Any]:
    """Where a source lies and the state of its files, the images beside them apart.

    Raises UserError when there is no parquet file where there should be.
    """
    files = parquet_files(source.path) if source.format == "pick_a_pic" else [Path(source.path)]
    return {
        "format": source.format,
        "path": source.path,
        "images": source.images,
        "files": {str(file): file_stamp(file) for file in files},
    }
