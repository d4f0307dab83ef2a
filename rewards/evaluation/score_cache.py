"""The scores of one reward on one source of data, kept on disk so that an interrupted evaluation goes on."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TextIO

from flowrl.base.errors import UserError


@dataclass(kw_only=True)
class ScoreUse:
    """Which scores of a file one evaluation found there and which it made, however often it opens the file."""

    found: set[str] = field(default_factory=set)
    made: set[str] = field(default_factory=set)


class ScoreCache:
    """A JSONL file: a first line that says whose scores these are, then one line for each chunk that was scored.

    A last line that an interruption cut off is dropped when the file is opened. NaN, the score of a sample that the
    reward cannot score, is kept as null. Without a path, scores are kept in memory alone. What is found and made is
    noted in `use`.
    """

    def __init__(self, path: Path | None, identity: Mapping[str, Any], use: ScoreUse | None = None) -> None:
        self.path = path
        self._use = use if use is not None else ScoreUse()
        self._scores: dict[str, float] = {}
        self._file: TextIO | None = None
        if path is None:
            return
        if path.exists():
            self._read(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")
        if path.stat().st_size == 0:
            self._write({"scores_of": dict(identity)})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def __contains__(self, key: str) -> bool:
        return key in self._scores

    def __getitem__(self, key: str) -> float:
        return self._scores[key]

    def missing(self, keys: Collection[str]) -> list[str]:
        """Those of `keys` that have no score here, in their order; the others are found, or were made before."""
        self._use.found.update(key for key in keys if key in self._scores and key not in self._use.made)
        return [key for key in keys if key not in self._scores]

    def add(self, scores: Mapping[str, float]) -> None:
        """Keep the scores of one chunk, by key; they are on disk, where there is a path, when this returns."""
        self._write({"scores": {key: score if math.isfinite(score) else None for key, score in scores.items()}})
        self._scores |= scores
        self._use.made |= scores.keys()

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is None:
            return
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self, path: Path) -> None:
        whole = 0  # bytes up to the last whole line
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    found = json.loads(line)
                    scores = found["scores"] if number > 1 else {}
                    self._scores |= {key: math.nan if score is None else float(score) for key, score in scores.items()}
                except (ValueError, KeyError, TypeError, AttributeError):
                    raise UserError(
                        f"{path}: line {number} is damaged; delete the file, and its images are scored again"
                    ) from None
                whole += len(line)
        with path.open("r+b") as file:
            file.truncate(whole)
