"""Where the checkpoints lie that come with flowrl, and what a configuration calls them."""

from __future__ import annotations

from pathlib import Path

from flowrl.core.errors import CheckpointError

POCKET = "pocket"
# By its place: the mathematics stands below the pocket world, which makes the checkpoints.
EMBEDDED = Path(__file__).parents[1] / "pocket" / "checkpoints"


def folder_of(path: str, embedded: str) -> Path:
    """The folder that a configuration names: `path`, or for "pocket" the embedded checkpoint called `embedded`.

    Raises CheckpointError when that one is not there; whether `path` is there is for its reader to say.
    """
    if path != POCKET:
        return Path(path)
    folder = EMBEDDED / embedded
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: the embedded {embedded} checkpoint is missing; run `flowrl pocket build`")
    return folder
