"""The files that the comparisons of a source are read from, and what tells that one of them has changed."""

from __future__ import annotations

import hashlib
import shlex
from dataclasses import dataclass
from pathlib import Path

from rewards.data.parquet_files import matching_files
from rewards.data.source import DataSource

_DIGESTED = 256 * 2**20  # bytes up to which a file is read for its stamp; larger ones are hundreds of GB in all


@dataclass(frozen=True, kw_only=True)
class FileStamp:
    """What is known of a file's content: a digest of a small one, which copies share; of a large one, its time.

    Example: ``FileStamp(path="train.jsonl", size=812, digest="9f86d081884c7d65", seconds=0)``
    """

    path: str
    size: int  # bytes
    digest: str  # empty for a large file
    seconds: int  # since 1970, when a large file was written last; 0 for a small one

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        """The stamp of a file that is there."""
        stat = path.stat()
        if stat.st_size > _DIGESTED:
            return cls(path=str(path), size=stat.st_size, digest="", seconds=int(stat.st_mtime))
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
        return cls(path=str(path), size=stat.st_size, digest=digest, seconds=0)


def source_stamps(source: DataSource) -> list[FileStamp]:
    """The stamps of those of a source's files that are there, in the order in which they are read.

    Images that lie beside them in files of their own are not looked at. Raises UserError when a folder holds several
    splits.
    """
    files = matching_files(source.path) if source.format == "pick_a_pic" else [Path(source.path)]
    return [FileStamp.of(file) for file in files if file.is_file()]


def difference(before: list[FileStamp], now: list[FileStamp]) -> str:
    """What has become of the first of a source's files that is not what it was; empty when all are."""
    held, found = ({stamp.path: stamp for stamp in stamps} for stamps in (before, now))
    for path in sorted(held.keys() | found.keys()):
        if path not in held:
            return f"{path} has come"
        if path not in found:
            return f"{path} has gone"
        old, new = held[path], found[path]
        if old.size == new.size and old.seconds != new.seconds:
            return (
                f"{path} may have changed (same size, another time; give a mere copy its time back: "
                f"touch -d @{old.seconds} {shlex.quote(path)})"
            )
        if old != new:
            return f"{path} has changed"
    return ""
