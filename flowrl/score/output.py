"""Scores as tables: CSV with an empty cell, or JSON lines with null, where there is no score."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence

from flowrl.score.inputs import InputError
from flowrl.score.run import Row

_OTHER_COLUMNS = ("file", "prompt")
_DIGITS = ".9g"  # tell any two float32 apart


def check_columns(labels: Sequence[str]) -> None:
    """Raise InputError unless each reward can have a column of its own."""
    for label in labels:
        if labels.count(label) > 1:
            raise InputError(
                f"--reward: two rewards are called {label!r}; give one another name, as in --reward 'other={label}'"
            )
        if label in _OTHER_COLUMNS:
            raise InputError(f"--reward: a reward cannot be called {label!r}, which is another column")


def csv_table(rows: Sequence[Row], labels: Sequence[str]) -> str:
    """The columns file, prompt and one per reward, under a line that names them."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_OTHER_COLUMNS, *labels])
    for row in rows:
        scores = ["" if score is None else format(score, _DIGITS) for score in row.scores]
        writer.writerow([row.file, row.prompt, *scores])
    return text.getvalue()


def json_lines(rows: Sequence[Row], labels: Sequence[str]) -> str:
    """One object per line, with the keys file, prompt and one per reward."""
    lines = []
    for row in rows:
        scores = [None if score is None else float(format(score, _DIGITS)) for score in row.scores]
        facts = {"file": row.file, "prompt": row.prompt, **dict(zip(labels, scores, strict=True))}
        lines.append(json.dumps(facts, ensure_ascii=False) + "\n")
    return "".join(lines)


FORMATS: dict[str, Callable[[Sequence[Row], Sequence[str]], str]] = {"csv": csv_table, "jsonl": json_lines}
