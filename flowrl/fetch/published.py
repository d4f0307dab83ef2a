"""A file as its source has it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flowrl.base.errors import UserError
from flowrl.fetch.digests import digest_like
from flowrl.fetch.sources import Part


class FetchError(UserError):
    """Something cannot be had or is not what it should be; the message says what, and what to do.

    `advice` may be the same for several, so that it can be said once.
    """


@dataclass(frozen=True, kw_only=True)
class Published:
    """A file of a repository, and where it is read from.

    Example: ``Published(name="vae/config.json", size=809, digest="git-sha1:...", place="https://...", part=part)``
    """

    name: str  # in its repository
    size: int | None  # bytes; None where the source does not say
    digest: str  # "sha256:..." or "git-sha1:..."; empty where the source has none
    place: str | Path  # a URL, or a file on this machine
    part: Part


def is_whole(path: Path, size: int | None, digest: str, *, thorough: bool = True) -> bool:
    """Whether a file is there with this size and checksum, of which what is unknown counts as right.

    Without `thorough` the checksum, which reads the whole file, is not looked at.
    """
    if not path.is_file() or path.stat().st_size == 0 or size not in (None, path.stat().st_size):
        return False
    return not (thorough and digest) or digest_like(path, digest) == digest
