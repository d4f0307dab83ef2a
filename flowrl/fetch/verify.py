"""Whether what a configuration needs is there and whole, found out without a network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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

    Raises FetchError when the record of the folder is damaged.
    """
    known = dict(_known(need))
    faults = list(need.faults)
    for name, one in known.items():
        path = place(need, name)
        if not is_whole(path, one.size, one.digest):
            faults.append(
                f"{path}: {'damaged' if path.is_file() else 'missing'}: not the {one.size} bytes of its source"
            )
    return Verified(need=need, faults=tuple(dict.fromkeys(faults)), checked=len(known))


def _known(need: Need) -> Iterator[tuple[str, Expected]]:
    record = read_record(folder_of(need))
    for part in need.bundle.parts if need.bundle is not None else ():
        yield from recorded(record, part).items()
