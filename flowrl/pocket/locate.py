"""Where the embedded pocket checkpoints lie."""

from __future__ import annotations

from pathlib import Path

from flowrl.core.errors import CheckpointError

NAMES = ("sd35", "dit_reward", "hpsv3")
ROOT = Path(__file__).parent / "checkpoints"
# The file that is written last: without it the folder is not whole.
_LAST = {"sd35": "model_index.json", "dit_reward": "reward_head.safetensors", "hpsv3": "HPSv3.safetensors"}


def checkpoint(name: str) -> Path:
    """The folder of the embedded checkpoint "sd35", "dit_reward" or "hpsv3"; raises when it is unknown or absent."""
    if name not in NAMES:
        raise ValueError(f"pocket checkpoint must be one of {NAMES}, got {name!r}")
    folder = ROOT / name
    if not (folder / _LAST[name]).is_file():
        raise CheckpointError(
            f"{folder}: the embedded pocket checkpoint {name!r} is missing or not whole; run `flowrl pocket build`"
        )
    return folder
