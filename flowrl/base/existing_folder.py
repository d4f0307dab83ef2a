"""Where a path that is not there yet will lie."""

from __future__ import annotations

from pathlib import Path


def existing_folder(path: Path) -> Path:
    """The path, or the nearest folder above it that is there; absolute."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())
