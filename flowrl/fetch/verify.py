"""Whether what a configuration needs is there and whole, found out without a network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flowrl.base.amounts import count
from flowrl.fetch.needs import Need
from flowrl.fetch.published import is_whole
from flowrl.fetch.record import Expected, read_record
from flowrl.fetch.tasks import folder_of, place, recorded


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What was found out about a need.

    Example: ``verify(need).faults`` is empty where everything is there
    """

    need: Need
    faults: tuple[str, ...]
    checked: int  # files whose checksums were compared with those of their source

    @property
    def how(self) -> str:
        """How far it was looked at, in words."""
        if self.checked:
            return "checksums compared with those of the source"
        return "not fetched by flowrl, so there are no checksums to compare with: judged by names and sizes"


def verify(need: Need) -> Verified:
    """Look for missing files, sizes that are not those of the headers, and checksums that are not the published ones.

    A file that is not as its source has it is named once, whatever else is seen to be wrong with it.

    Raises FetchError when the record of the folder is damaged.
    """
    known = dict(_known(need))
    others = {
        path: f"{path}: {_difference(path, one)}"
        for path, one in ((place(need, name), one) for name, one in known.items())
        if not is_whole(path, one.size, one.digest)
    }
    seen = [fault for fault in need.faults if not fault.startswith(tuple(f"{path}: " for path in others))]
    return Verified(need=need, faults=(*seen, *others.values()), checked=len(known))


def _difference(path: Path, published: Expected) -> str:
    """How a file that is not whole differs from its source."""
    if not path.is_file():
        return "missing"
    found = path.stat().st_size
    if found != published.size:
        return f"damaged: it holds {count(found, 'byte')}, at its source {published.size:,}"
    return f"damaged: it has the {count(found, 'byte')} of its source, but another checksum"


def _known(need: Need) -> Iterator[tuple[str, Expected]]:
    record = read_record(folder_of(need))
    for part in need.bundle.parts if need.bundle is not None else ():
        yield from recorded(record, part).items()
