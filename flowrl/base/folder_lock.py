"""A folder that one process writes to at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tempfile
from pathlib import Path
from typing import IO

from flowrl.base.config_tree import ConfigError

LOCK = ".lock"


def make_writable(path: Path, key: str) -> None:
    """Make a folder where it is not there yet; raises ConfigError, which names `key`, when it cannot be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ConfigError(
            f"{key}={path} must be writable: {error.strerror or error}; use another {key} or change its rights"
        ) from None


def take_lock(path: Path, key: str, name: str = LOCK) -> IO[str] | None:
    """Keep other processes from writing to a folder; the system gives the lock back when its holder ends, however.

    None on a file system without locks. Raises ConfigError, which names `key`, when another process holds it.
    """
    lock = (path / name).open("a+", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.seek(0)
        holder = lock.read().strip()
        lock.close()
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            return None  # a file system without locks
        if holder == str(os.getpid()):
            return None  # an earlier run of this process, which has ended
        raise ConfigError(
            f"{key}={path} must be written by one process, but process {holder} is writing to it; "
            f"wait for it, stop it, or use another {key}"
        ) from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def wait_for_lock(path: Path, name: str = ".finishing") -> IO[str]:
    """Wait until no other process holds this lock of a folder; closing the file gives it back."""
    lock = (path / name).open("a+", encoding="utf-8")
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock
