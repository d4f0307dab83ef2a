"""Says how the embedded checkpoints were made, from the record that their build leaves beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowrl.base.errors import CheckpointError

RECORD = "provenance.json"
_PARTS = ("policy", "policy/attributes", "policy/relation", "policy/shape", "policy/cleanliness", "edited")


def describe(folder: Path) -> str:
    """A page of text about the checkpoints in `folder`; raises CheckpointError when their record is not there."""
    path = folder / RECORD
    if not path.is_file():
        raise CheckpointError(f"{path}: this file is missing; run `flowrl pocket build`")
    record = json.loads(path.read_text(encoding="utf-8"))
    stages = record["stages"]
    threads = "1 thread" if record["cpu_threads"] == 1 else f"{record['cpu_threads']} threads"
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    rewards = {name: stages[name] for name in ("dit_reward", "hpsv3")}
    return "\n".join(
        [
            f"{folder}, made by {record['command']}",
            f"on the CPU with {threads}, Python {record['python']}, {versions}",
            "",
            f"{'trained':<20}{'steps':>8}{'minutes':>9}{'parameters':>12}   loss, first to last",
            *(_training(name, stages[name]) for name in ("vae", "policy", "dit_reward", "hpsv3")),
            "",
            f"{'preference pairs':<20}{'train':>8}{'held out':>10}",
            *(_pairs(kind, stages["preferences"]) for kind in ("policy", "edited")),
            "",
            "agreement with the oracle on held-out pairs, %",
            " " * 20 + "".join(f"{part.removeprefix('policy/'):>12}" for part in _PARTS),
            *(_agreement(name, reward["accuracy"]) for name, reward in rewards.items()),
            "",
            f"all figures: {path}",
        ]
    )


def _training(name: str, stage: Mapping[str, Any]) -> str:
    losses = stage["losses"]
    minutes = stage["seconds"] / 60
    return (
        f"{name:<20}{stage['steps']:>8,}{minutes:>9.1f}{stage['parameters']:>12,}   {losses[0]:.3f} to {losses[-1]:.3f}"
    )


def _pairs(kind: str, stage: Mapping[str, Any]) -> str:
    return f"{kind:<20}{stage['train'][kind]['pairs']:>8,}{stage['test'][kind]['pairs']:>10,}"


def _agreement(name: str, shares: Mapping[str, float]) -> str:
    cells = (f"{100 * shares[part]:.1f}" if part in shares else "-" for part in _PARTS)  # a small set may lack a part
    return f"{name:<20}" + "".join(f"{cell:>12}" for cell in cells)
