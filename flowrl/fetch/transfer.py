"""Brings one file to its place: it is there whole or not at all, and what has arrived of it is kept aside."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import http_get

from flowrl.base.existing_folder import existing_folder
from flowrl.fetch.breaks import counted_breaks
from flowrl.fetch.digests import digest_like
from flowrl.fetch.failures import broken_off, explain
from flowrl.fetch.network import headers
from flowrl.fetch.progress import ArrivalBar
from flowrl.fetch.published import FetchError, Published


def aside(file: Published, path: Path) -> Path:
    """Where a file is while it arrives: beside its place, under a name of its content, so that no two are mixed.

    A copy has another name than a download, which would else be continued in a file that has a second name elsewhere.
    """
    content = file.digest.rpartition(":")[2][:12] or "new"
    return path.with_name(f".{path.name}.{content}.{'copy' if isinstance(file.place, Path) else 'part'}")


def arrived(file: Published, path: Path) -> int:
    """How many bytes of it an interrupted download left, which need not come again."""
    half = aside(file, path)
    can_go_on = bool(file.digest) and not isinstance(file.place, Path)
    return half.stat().st_size if can_go_on and half.is_file() else 0


def is_linked(file: Published, path: Path) -> bool:
    """Whether it takes no room, being a second name of a file on the same disk."""
    return isinstance(file.place, Path) and file.place.stat().st_dev == existing_folder(path).stat().st_dev


def bring(file: Published, path: Path, accept: Callable[[Path], None]) -> None:
    """Put a file at `path`, continuing what an interrupted download left.

    `accept` looks at what arrived before it gets its name, and raises FetchError to refuse it. Raises FetchError, with
    which nothing is at `path` that was not there before: no connection, no access, or other content than the source
    says, which is deleted; and OSError when the disk is full. What has arrived is kept where it can be continued.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    half = aside(file, path)
    try:
        if isinstance(file.place, Path):
            half.unlink(missing_ok=True)
            _link_or_copy(file.place.resolve(), half)
        else:
            _download(file, file.place, half)
        _verify(file, half)
        accept(half)
    except (FetchError, OSError):
        if not arrived(file, path):
            half.unlink(missing_ok=True)
        raise
    half.replace(path)


def _download(file: Published, url: str, half: Path) -> None:
    if not file.digest or (file.size is not None and half.exists() and half.stat().st_size > file.size):
        half.unlink(missing_ok=True)  # it cannot be told whether what is there is the beginning of this
    with half.open("ab") as out, counted_breaks() as breaks:
        try:
            http_get(
                url,
                out,
                resume_size=out.tell(),
                headers=headers(file.part),
                expected_size=file.size,
                displayed_filename=half.name,
                tqdm_class=ArrivalBar,
            )
        except HfHubHTTPError as error:
            raise explain(error, file.part, url) from error
        except HTTPError as error:
            here = out.tell() if file.digest else 0
            label = f"{file.part.label}: {file.name}"
            raise broken_off(error, label, url, tries=breaks.tries, here=here) from error
        except OSError as error:
            if error.errno is not None:
                raise
            # Without a number it is the library's own: more or fewer bytes came than were announced.
            half.unlink()
            raise FetchError(
                f"{file.part.label}: {file.name}: other than {file.size} bytes arrived, which were deleted; start the "
                "same command again"
            ) from error
        out.flush()
        os.fsync(out.fileno())


def _link_or_copy(source: Path, half: Path) -> None:
    try:
        half.hardlink_to(source)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(source, half)


def _verify(file: Published, half: Path) -> None:
    """Raise FetchError, and delete what arrived, when it is not what was published."""
    found = half.stat().st_size
    if file.size is not None and found != file.size:
        half.unlink()
        raise FetchError(
            f"{file.part.label}: {file.name}: has {found} bytes of {file.size}, so what arrived was deleted",
            advice=_AGAIN,
        )
    if file.digest and (digest := digest_like(half, file.digest)) != file.digest:
        half.unlink()
        raise FetchError(
            f"{file.part.label}: {file.name}: wrong checksum, so what arrived was deleted\n"
            f"  published {file.digest}\n"
            f"  arrived   {digest}",
            advice=_AGAIN,
        )


_AGAIN = (
    "1. start the same command again\n"
    "2. where that gives the same, something on the way changes it: take it from another source with --from"
)
