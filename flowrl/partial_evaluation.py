"""What an evaluation that was stopped has scored so far, on disk, so that it goes on from there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from flowrl.base.atomic_file import write_atomically
from flowrl.types import Scores


class PartialEvaluation:
    """A file with a line for each group; it counts for the evaluation of one `identity` alone.

    Numbers come back bit for bit. A line that was being written when the process was killed is dropped.
    """

    def __init__(self, file: Path, identity: str) -> None:
        self._file = file
        lines = file.read_text(encoding="utf-8").split("\n") if file.is_file() else []
        self._scores: dict[int, Scores] = {}
        if not lines or lines[0] != identity:
            write_atomically(file, f"{identity}\n".encode())
            return
        whole = [line for line in lines[1:-1] if line]  # what follows the last newline is torn
        self._scores = {row["place"]: _scores(row) for row in map(json.loads, whole)}
        write_atomically(file, "\n".join([identity, *whole, ""]).encode())

    def get(self, place: int) -> Scores | None:
        """The scores of the group at a place among the prompts, without images, if they are there."""
        return self._scores.get(place)

    def add(self, groups: dict[int, Scores]) -> None:
        """Keep the scores of groups; they are on the disk when this returns."""
        with self._file.open("a", encoding="utf-8") as file:
            for place, scores in groups.items():
                file.write(json.dumps({"place": place, **_row(scores)}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        """The evaluation is done."""
        self._file.unlink(missing_ok=True)


def _row(scores: Scores) -> dict[str, object]:
    return {
        "per_reward": {name: values.tolist() for name, values in scores.per_reward.items()},
        "total": scores.total.tolist(),
        "unnormalised": scores.unnormalised.tolist(),
        "diversity": scores.diversity,
        "trajectory_bytes": scores.trajectory_bytes,
        "seconds": scores.seconds,
    }


def _scores(row: dict[str, Any]) -> Scores:
    total = torch.tensor(row["total"])
    return Scores(
        per_reward={name: torch.tensor(values) for name, values in row["per_reward"].items()},
        total=total,
        unnormalised=torch.tensor(row["unnormalised"]),
        valid=total.isfinite(),
        diversity=row["diversity"],
        trajectory_bytes=row["trajectory_bytes"],
        seconds=row["seconds"],
    )
