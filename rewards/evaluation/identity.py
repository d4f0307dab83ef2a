"""What scores depend on, as far as names, files and code say it: scores on disk are found again by this alone."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flowrl.base.embedded import EMBEDDED, POCKET
from flowrl.base.weight_files import read_json
from flowrl.models.latent_inputs import EncoderSetting
from rewards.data.comparison import ImageRef
from rewards.data.source import DataSource
from rewards.data.source_files import source_stamps

_CODE = ("rewards", "flowrl.base", "flowrl.core", "flowrl.models", "flowrl.reward_call")


def file_stamp(path: Path) -> str:
    """A digest of name, size and time of each file at a path, a file or a folder; empty when nothing is there."""
    files = [path] if path.is_file() else sorted(path.rglob("*")) if path.is_dir() else []
    stats = [(str(file.relative_to(path)), file.stat()) for file in files if file.is_file()]
    listed = [f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats]
    return hashlib.blake2b("\n".join(listed).encode(), digest_size=8).hexdigest() if listed else ""


def reward_identity(name: str, options: Mapping[str, Any], target: str) -> dict[str, Any] | None:
    """A reward's name, its options and the state of its files and code; None when files do not say what it is, as of a
    server.

    Its class is `target`, "module:Class". Its files are those that an option names, with the folder that the
    config.json of one names as its base, and the embedded checkpoints where these may be used. Which options name files
    only the reward knows: a text that is no path has no stamp.
    """
    texts = {option: value for option, value in options.items() if value and isinstance(value, str)}
    if any("://" in value for value in texts.values()):
        return None
    files = {option: [file_stamp(path) for path in _with_base(Path(value))] for option, value in texts.items()}
    if "path" not in texts or POCKET in texts.values():
        files["embedded"] = [file_stamp(EMBEDDED)]
    return {"name": name, "options": dict(options), "files": files, "code": code_digest(target)}


def code_digest(target: str) -> str:
    """A digest of the sources that the scores of a class "module:Class" come from.

    These are the rewards, all of flowrl that a reward may import, and the package that the class stands in, or its
    module where that is in none. Versions of other packages are not in it.
    """
    module, _, _ = target.partition(":")
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted({*_CODE, module.rpartition(".")[0] or module}):
        for file in sources(name):
            content = file.read_bytes()
            digest.update(f"{name} {file.name} {len(content)} ".encode() + content)
    return digest.hexdigest()


def sources(name: str) -> list[Path]:
    """The Python files of a module, or of a package and those below it; none where it cannot be found."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        return []
    if spec.submodule_search_locations is None:
        return [Path(spec.origin)] if spec.origin is not None else []
    return sorted(file for folder in spec.submodule_search_locations for file in Path(folder).rglob("*.py"))


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
    """Where a source lies and the state of its files; of images beside them see `image_stamp`."""
    return {
        "format": source.format,
        "path": source.path,
        "images": source.images,
        "files": [asdict(stamp) for stamp in source_stamps(source)],
    }


def image_stamp(image: ImageRef) -> str:
    """Size and time of an image file, by which a replaced one is known; empty when nothing is there.

    Of an image in a parquet file it is empty too: `source_identity` has the stamp of that file.
    """
    if image.row >= 0:
        return ""
    try:
        stat = os.stat(image.path)
    except (OSError, ValueError):  # what is wrong with it is said where it is read
        return ""
    return f"{stat.st_size} {stat.st_mtime_ns}"
