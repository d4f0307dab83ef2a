"""What a training needs to go on exactly: the weights that learn, the optimizer, the average, the step, the sets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from flowrl.base import checkpoint
from flowrl.base.config_tree import ConfigError
from flowrl.base.errors import CheckpointError
from flowrl.base.weight_files import read_json
from rewards.data.store import PreferenceStore
from rewards.training.average import MovingAverage
from rewards.training.session import Session

_STATE = "state.pt"
_SETS = "sets.json"  # beside it, so that it is read before a model is loaded
_SHARDED = "sharded"


def save_state(
    root: Path,
    step: int,
    session: Session,
    average: MovingAverage,
    *,
    settings: dict[str, str],
    stores: Sequence[PreferenceStore],
    keep: int,
) -> None:
    """Write checkpoint `step`, whole or not at all; frozen weights are not in it. Every rank must call it."""
    if session.is_sharded:
        # DeepSpeed's own files come first, each rank's; without a manifest beside them they are not a checkpoint.
        session.network.save_checkpoint(
            str(root.parent / _SHARDED), tag=f"step_{step:06d}", exclude_frozen_parameters=True
        )
    session.wait()
    if not session.is_main:
        return

    def write(folder: Path) -> None:
        state: dict[str, object] = {"step": step, "world": session.world, "settings": settings}
        if not session.is_sharded:
            state |= {
                "weights": {name: p.detach() for name, p in session.learning.items()},
                "optimizer": session.optimizer.state_dict(),
                "average": average.values,
            }
        torch.save(state, folder / _STATE)
        digests = {store.folder.name: store.digest for store in stores}
        (folder / _SETS).write_text(f"{json.dumps(digests, indent=1)}\n", encoding="utf-8")

    checkpoint.save(root, step, write, keep=keep)
    for old in (root.parent / _SHARDED).glob("step_*"):
        if not (root / old.name).is_dir():
            shutil.rmtree(old)


def check_sets(folder: Path, stores: Sequence[PreferenceStore]) -> None:
    """Raise ConfigError naming the set that is not the one that the training of a checkpoint began with.

    A set that was made anew of the same sources passes. Raises CheckpointError when the checkpoint names no sets.
    """
    if not (folder / _SETS).is_file():
        raise CheckpointError(f"{folder}: does not say which sets it was made on: it has no {_SETS}; train anew")
    held = read_json(folder / _SETS)
    for store in stores:
        if held.get(store.folder.name) != store.digest:
            raise ConfigError(
                f"{store.folder}: is not the set that {folder} was made on: pairs, prompts or images differ. Put that "
                f"set back; or put its sources back as they were and remove {store.folder}, so that it is made again; "
                "or begin a new training, without --resume"
            )


def load_state(folder: Path, session: Session, average: MovingAverage, *, settings: dict[str, str]) -> int:
    """Go on from a checkpoint; returns how many steps were done.

    Raises CheckpointError when it does not fit, or was made under other settings: config.yaml was changed since.
    """
    state = torch.load(folder / _STATE, weights_only=True, map_location="cpu")
    made_under = state["settings"]
    changed = sorted(key for key in settings.keys() | made_under.keys() if settings.get(key) != made_under.get(key))
    if changed:
        raise CheckpointError(f"{folder}: was made with other values of {', '.join(changed)}; put them back")
    if session.is_sharded != ("weights" not in state):
        raise CheckpointError(
            f"{folder}: was written {'with' if 'weights' not in state else 'without'} DeepSpeed; go on the same way"
        )
    if session.is_sharded:
        if state["world"] != session.world:
            raise CheckpointError(
                f"{folder}: was written by {state['world']} processes, each its part, but there are {session.world} "
                "now; go on with as many"
            )
        root = folder.parent.parent / _SHARDED
        found, _ = session.network.load_checkpoint(str(root), tag=folder.name, load_module_strict=False)
        if found is None:
            raise CheckpointError(
                f"{root / folder.name}: DeepSpeed's part of {folder} is missing or damaged; remove both"
            )
        return int(state["step"])
    if state["weights"].keys() != session.learning.keys():
        raise CheckpointError(f"{folder}: holds other weights than those that learn now; start a training anew")
    with torch.no_grad():
        for name, parameter in session.learning.items():
            parameter.copy_(state["weights"][name])
    session.optimizer.load_state_dict(state["optimizer"])
    average.load(state["average"])
    return int(state["step"])
