"""Whether what is to come fits on the disks."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from flowrl.base.amounts import size
from flowrl.base.existing_folder import existing_folder
from flowrl.fetch.published import FetchError


def check_room(needed: Mapping[Path, int]) -> str:
    """What will be used of each disk and what is free there, in words; raises FetchError when it does not fit.

    `needed` are the bytes that will come into each folder.
    """
    disks: dict[int, list[Path]] = {}
    for folder, amount in needed.items():
        if amount:
            disks.setdefault(existing_folder(folder).stat().st_dev, []).append(folder)
    return "; ".join(_check_disk(folders, sum(needed[folder] for folder in folders)) for folders in disks.values())


def _check_disk(folders: Sequence[Path], amount: int) -> str:
    place = existing_folder(folders[0])
    free = shutil.disk_usage(place).free
    if amount > free:
        raise FetchError(
            f"{place}: {size(amount)} are needed on this disk for {', '.join(map(str, folders))}, {size(free)} are "
            f"free; make room for {size(amount - free)}, or let the paths of the configuration lie on another disk"
        )
    return f"{size(amount)} of the {size(free)} that are free at {place}"
