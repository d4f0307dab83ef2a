"""The temporary folder of a cluster that a run starts: Ray keeps its sockets and logs there."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

_ROOT = Path("/tmp")  # sockets live below, and their paths may not exceed 107 bytes
_PREFIX = "flowrl-"


def make() -> str:
    """A new folder, named after this process; those of processes that were killed are removed first."""
    for folder in _ROOT.glob(f"{_PREFIX}*"):
        number = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if number.isdigit() and not Path("/proc", number).exists() and folder.stat().st_uid == os.getuid():
            shutil.rmtree(folder, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=_ROOT)
