"""Files that are whole or absent."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from flowrl.base.file_mode import apply_umask


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that readers see all of it or none of it, also after a crash."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    aside = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        apply_umask(aside)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
