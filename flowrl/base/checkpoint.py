"""Checkpoints that are whole or absent: written aside, hashed, renamed, and verified before they are used."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

_MANIFEST = "MANIFEST.json"


def save(root: Path, step: int, write: Callable[[Path], None], *, keep: int) -> Path:
    """Have `write` fill a folder, and make it checkpoint `step`; the newest `keep` checkpoints up to it stay.

    Later ones go: they are what a run that went back to an earlier checkpoint could not use.
    """
    root.mkdir(parents=True, exist_ok=True)
    final = root / f"step_{step:06d}"
    aside = root / f".step_{step:06d}.{os.getpid()}"
    for unfinished in root.glob(".step_*"):  # of a process that was killed
        shutil.rmtree(unfinished)
    aside.mkdir()
    try:
        write(aside)
        files = sorted(path for path in aside.iterdir() if path.is_file())
        hashes = {path.name: _sha256(path) for path in files}
        manifest = aside / _MANIFEST
        manifest.write_text(json.dumps({"step": step, "files": hashes}, indent=1))
        for path in [*files, manifest, aside]:
            _sync(path)
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)
        _sync(root)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    kept = [folder for folder in _folders(root) if step_of(folder) <= step][:keep]
    for other in set(_folders(root)) - set(kept):
        shutil.rmtree(other)
    return final


def is_one(folder: Path) -> bool:
    """Whether a folder is a checkpoint, whole or not."""
    return re.fullmatch(r"step_\d+", folder.name) is not None and (folder / _MANIFEST).is_file()


def problem(folder: Path) -> str | None:
    """Why a checkpoint cannot be used, or None when every file is as it was written."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        for name, expected in manifest["files"].items():
            if _sha256(folder / name) != expected:
                return f"{folder / name} is not as it was written (truncated or changed)"
    except FileNotFoundError as error:
        return f"{error.filename} is missing"
    except OSError as error:
        return f"{error.filename} cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{folder / _MANIFEST} is not a manifest"
    return None


def newest(root: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and what is wrong with those that were passed over."""
    problems: list[str] = []
    for folder in _folders(root):
        found = problem(folder)
        if found is None:
            return folder, problems
        problems.append(found)
    return None, problems


def step_of(folder: Path) -> int:
    """The step that a checkpoint was made after."""
    return int(folder.name.removeprefix("step_"))


def _folders(root: Path) -> list[Path]:
    found = (path for path in root.glob("step_*") if path.is_dir() and re.fullmatch(r"step_\d+", path.name))
    return sorted(found, key=step_of, reverse=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
