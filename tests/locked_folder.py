"""A folder that some other process writes to."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flowrl.base.folder_lock import LOCK


@contextmanager
def locked_by_another(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, as process 1 would."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        lock.write("1")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
