"""What is to be done for a need: which files its folder must hold, and which of them are not there or not whole."""

from __future__ import annotations

import filecmp
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from flowrl.base.errors import CheckpointError
from flowrl.fetch.faults import check_file
from flowrl.fetch.needs import Need
from flowrl.fetch.published import FetchError, Published, is_whole
from flowrl.fetch.record import Expected, Record, read_record
from flowrl.fetch.sources import Part
from flowrl.fetch.transfer import arrived, is_linked


class Origin(Protocol):
    """Where files come from: a network or a folder."""

    def published(self, part: Part, folder: Path) -> list[Published]:
        """The files of a part, which are to go into `folder`; raises FetchError when they cannot be had."""

    def check_access(self, file: Published) -> None:
        """Raise FetchError when the file is there but not let go."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """A file that a folder must hold, and whether it does.

    Example: ``Item(file=file, path=Path("models/HPSv3/config.json"), whole=True)``
    """

    file: Published
    path: Path
    whole: bool

    @property
    def to_come(self) -> int:
        """The bytes that must still come; 0 where nothing is known of its size."""
        return 0 if self.whole else max((self.file.size or 0) - arrived(self.file, self.path), 0)

    @property
    def room(self) -> int:
        """The bytes that its coming takes of the disk."""
        return 0 if self.whole or is_linked(self.file, self.path) else self.to_come


@dataclass(frozen=True, kw_only=True)
class Task:
    """A need and its files.

    Example: ``task_for(need, Network()).to_fetch``
    """

    need: Need
    items: tuple[Item, ...]

    @property
    def to_fetch(self) -> list[Item]:
        """The files that are not there or not whole."""
        return [item for item in self.items if not item.whole]


def folder_of(need: Need) -> Path:
    """The folder of a need; for prompts the one around their file."""
    return need.path.parent if need.kind == "prompts" else need.path


def task_for(need: Need, origin: Origin, *, thorough: bool = True) -> Task:
    """Compare what is there with what was fetched before, or else with the source; raises FetchError.

    What was fetched before and is whole is not asked for again, so a network is needed only where something is not.
    Without `thorough` sizes alone are compared.
    """
    if need.bundle is None:
        raise FetchError(f"{need.path}: {need.advice}")
    record = read_record(folder_of(need))
    items: list[Item] = []
    for part in need.bundle.parts:
        known = recorded(record, part)
        if need.present and set(part.files) <= known.keys() and _all_whole(need, known, thorough):
            items += [_known_item(need, part, name, expected) for name, expected in known.items()]
        else:
            files = origin.published(part, folder_of(need))
            items += [_item(need, file, thorough=thorough, is_ours=file.name in known) for file in files]
    return Task(need=need, items=tuple(items))


def recorded(record: Record, part: Part) -> dict[str, Expected]:
    """What the record of a folder says of the files of this part."""
    return {name: one for name, one in record.parts.get(part.label, {}).items() if part.takes(name)}


def _all_whole(need: Need, known: Mapping[str, Expected], thorough: bool) -> bool:
    """Sizes first, as they are known at once."""
    passes = (False, True) if thorough else (False,)
    return all(
        is_whole(place(need, name), one.size, one.digest, thorough=reads)
        for reads in passes
        for name, one in known.items()
    )


def _known_item(need: Need, part: Part, name: str, expected: Expected) -> Item:
    path = place(need, name)
    file = Published(name=name, size=expected.size, digest=expected.digest, place=path, part=part)
    return Item(file=file, path=path, whole=True)


def _item(need: Need, file: Published, *, thorough: bool, is_ours: bool) -> Item:
    path = place(need, file.name)
    whole = is_whole(path, file.size, file.digest, thorough=thorough)
    if whole and thorough and not file.digest and isinstance(file.place, Path):
        whole = filecmp.cmp(path, file.place, shallow=False)
    if not whole and not is_ours:
        _spare_what_is_not_ours(path, file, is_prompts=need.kind == "prompts")
    return Item(file=file, path=path, whole=whole)


def place(need: Need, name: str) -> Path:
    """Where a file of a repository belongs."""
    return need.path if need.kind == "prompts" else need.path / name


def _spare_what_is_not_ours(path: Path, file: Published, *, is_prompts: bool) -> None:
    """Raise FetchError before a file is overwritten that is no damaged copy but a whole one of other content.

    Told by its size: a file cut off on its way is not what its own header says, and no JSON.
    """
    can_tell = path.suffix in (".safetensors", ".json") or is_prompts
    if not (path.is_file() and can_tell) or path.stat().st_size in (0, file.size):
        return
    try:
        check_file(path)
    except CheckpointError:
        return
    raise FetchError(
        f"{path}: is another file than {file.part.label} has ({path.stat().st_size} bytes, there {file.size}) and was "
        "not fetched by flowrl, so it is left alone; remove it to have the published one, or keep yours in a folder of "
        "another name"
    )
