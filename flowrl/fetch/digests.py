"""Checksums of files as the Hub publishes them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from flowrl.fetch.progress import ReadingBar

_CHUNK = 2**22  # bytes
_SHOWN_FROM = 2**26  # bytes; smaller files are read before a bar could be seen


def sha256(path: Path) -> str:
    """The checksum of a file, such as "sha256:9f86d0...".

    The Hub publishes this one of large files.
    """
    return f"sha256:{_hexdigest(path, hashlib.sha256())}"


def digest_like(path: Path, wanted: str) -> str:
    """The checksum of a file of the kind that `wanted` is: "sha256:..." or "git-sha1:...", git's name of a small file.

    Raises ValueError for another kind.
    """
    kind = wanted.partition(":")[0]
    if kind == "sha256":
        return sha256(path)
    if kind == "git-sha1":  # names the content, and protects from damage alone, as git does
        state = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        return f"git-sha1:{_hexdigest(path, state)}"
    raise ValueError(f"a checksum must be sha256:... or git-sha1:..., got {wanted!r}")


def _hexdigest(path: Path, state: hashlib._Hash) -> str:
    total = path.stat().st_size
    with path.open("rb") as file:
        if total < _SHOWN_FROM:
            state.update(file.read())
            return state.hexdigest()
        with ReadingBar(total) as bar:
            while chunk := file.read(_CHUNK):
                state.update(chunk)
                bar.update(len(chunk))
    return state.hexdigest()
