"""A folder of this machine as a source of files: downloads of the Hub, or the folders of another flowrl."""

from __future__ import annotations

from pathlib import Path

from flowrl.base.errors import CheckpointError, UserError
from flowrl.fetch.faults import check_file
from flowrl.fetch.published import FetchError, Published
from flowrl.fetch.record import RECORD, Expected, read_record
from flowrl.fetch.sources import Part


class Copies:
    """Files below a folder; raises UserError when there is no such folder.

    Those of the repository ORG/NAME lie at the relative path that the configuration names, as below another folder in
    which flowrl works, in ORG/NAME, in NAME, in a folder called as the one that is to be filled, or where the Hub's own
    programs keep what they download (models--ORG--NAME).
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise UserError(
                f"--from {root}: no such folder; name one that holds ORG/NAME/..., or a mirror by its URL, https://..."
            )
        self._root = root

    def published(self, part: Part, folder: Path) -> list[Published]:
        """The files of a part, with checksums where they were fetched there; raises FetchError when one is missing or
        seen to be cut off.
        """
        name = part.repository.rpartition("/")[2]
        as_named = [] if folder.is_absolute() else [self._root / folder]
        called_so = self._root / folder.name
        places = list(dict.fromkeys([*as_named, self._root / part.repository, self._root / name, called_so]))
        for place in [*places, *_cached(self._root, part.repository)]:
            by_last_name = part.site == "github" and place in (*as_named, called_so)
            found = _files(place, part, by_last_name=by_last_name)
            if found is not None:
                return found
        where = ", ".join(map(str, places))
        raise FetchError(f"{part.label}: {', '.join(part.files)} must be in one of {where}; copy them there")

    def check_access(self, file: Published) -> None:
        """Do nothing: what lies on this machine has been let go."""


def _cached(root: Path, repository: str) -> list[Path]:
    """The folder in which the Hub's own programs keep the newest files of a repository, where there is one."""
    folder = root / f"models--{repository.replace('/', '--')}"
    revision = folder / "refs" / "main"
    return [folder / "snapshots" / revision.read_text(encoding="utf-8").strip()] if revision.is_file() else []


def _files(place: Path, part: Part, *, by_last_name: bool) -> list[Published] | None:
    """The files of a part in `place`, None where one that it must have is missing.

    `by_last_name` finds dataset/pickscore/train.txt as train.txt.
    """
    files = {name: place / (Path(name).name if by_last_name else name) for name in part.files}
    if not all(file.is_file() for file in files.values()):
        return None
    below = (str(file.relative_to(place)) for file in place.rglob("*") if file.is_file() and file.name != RECORD)
    files |= {name: place / name for name in below if part.takes(name) and name not in files}
    known = read_record(place).parts.get(part.label, {})
    return [_published(name, file, known.get(name), part) for name, file in sorted(files.items())]


def _published(name: str, file: Path, known: Expected | None, part: Part) -> Published:
    """A file, with its checksum where one is known; raises FetchError where none is and it is seen to be cut off."""
    if known is None:
        try:
            check_file(file)
        except CheckpointError as error:
            raise FetchError(f"{part.label}: {error}") from error
    size = file.stat().st_size if known is None else known.size
    return Published(name=name, size=size, digest="" if known is None else known.digest, place=file, part=part)
