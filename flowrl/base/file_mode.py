"""Who may read what is written."""

from __future__ import annotations

import os
from pathlib import Path


def apply_umask(file: Path) -> None:
    """Give a file the rights of one that `open` made; temporary files, and some libraries', are their owner's alone."""
    umask = os.umask(0)
    os.umask(umask)
    file.chmod(0o666 & ~umask)


def apply_umask_below(folder: Path) -> None:
    """Give every file of a folder such rights."""
    for file in folder.rglob("*"):
        if file.is_file():
            apply_umask(file)
