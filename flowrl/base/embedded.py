"""Where the checkpoints lie that come with flowrl, and what a configuration calls them."""

from __future__ import annotations

from pathlib import Path

from flowrl.base.errors import CheckpointError

POCKET = "pocket"
# By its place: what is here stands below the pocket world, which makes the checkpoints.
EMBEDDED = Path(__file__).parents[1] / "pocket" / "checkpoints"
# The file of each that is written last: without it the folder is not whole.
_LAST = {"sd35": "model_index.json", "dit_reward": "reward_head.safetensors", "hpsv3": "HPSv3.safetensors"}


def embedded(name: str) -> Path:
    """The folder of the embedded checkpoint "sd35", "dit_reward" or "hpsv3"; raises CheckpointError when it is not
    whole, ValueError when there is none of that name.
    """
    if name not in _LAST:
        raise ValueError(f"pocket checkpoint must be one of {tuple(_LAST)}, got {name!r}")
    folder = EMBEDDED / name
    if not (folder / _LAST[name]).is_file():
        raise CheckpointError(
            f"{folder}: the embedded pocket checkpoint {name!r} is missing or not whole; run `flowrl pocket build`"
        )
    return folder


def folder_of(path: str, name: str) -> Path:
    """The folder that a configuration names: `path`, or for "pocket" the embedded checkpoint called `name`.

    Raises CheckpointError when that one is not whole; whether `path` is there is for its reader to say.
    """
    return embedded(name) if path == POCKET else Path(path)
