"""Which prompt belongs to which sample: by order from a text file, by name from a table, or from the samples' files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from flowrl.score.inputs import InputError, Sample


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A line of a table of prompts."""

    line: int
    file: str
    prompt: str


def own_prompts(samples: Sequence[Sample]) -> list[str]:
    """The prompts that the samples' own files hold; raises InputError where one has none."""
    without = [sample for sample in samples if sample.own_prompt is None and not sample.problem]
    if without:
        raise InputError(
            f"{without[0].name}: has no prompt of its own; give --prompts FILE, or --prompt TEXT for all samples"
        )
    return [sample.own_prompt or "" for sample in samples]


def read_prompts(file: Path, samples: Sequence[Sample]) -> list[str]:
    """One prompt per sample: from the rows of a .jsonl or .csv file that name its file, else one line each, in order.

    Raises InputError when they do not fit together.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"--prompts {file}: is not UTF-8 text ({error.reason}); save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"--prompts {file}: cannot be read: {error.strerror}") from None
    if file.suffix.lower() == ".jsonl":
        return _by_name(_jsonl_rows(text, file), samples, file)
    if file.suffix.lower() == ".csv":
        return _by_name(_csv_rows(text, file), samples, file)
    lines = [line.strip() for line in text.rstrip().split("\n")] if text.strip() else []
    if len(lines) != len(samples):
        raise InputError(
            f"--prompts {file}: must hold one line per sample, but it has {len(lines)} and there are {len(samples)} "
            f"samples, from {samples[0].name} to {samples[-1].name}"
        )
    return lines


def _jsonl_rows(text: str, file: Path) -> list[_Row]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"--prompts {file}: line {number} is not JSON: {error}") from None
        if not (isinstance(row, dict) and isinstance(row.get("file"), str) and isinstance(row.get("prompt"), str)):
            raise InputError(
                f'--prompts {file}: line {number} must read {{"file": "...", "prompt": "..."}}, reads {line[:80]}'
            )
        rows.append(_Row(line=number, file=row["file"], prompt=row["prompt"]))
    return rows


def _csv_rows(text: str, file: Path) -> list[_Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    columns = reader.fieldnames or []
    if not {"file", "prompt"} <= set(columns):
        raise InputError(
            f"--prompts {file}: its first line must name the columns file and prompt, names {', '.join(columns)}"
        )
    return [_Row(line=reader.line_num, file=row["file"] or "", prompt=row["prompt"] or "") for row in reader]


def _by_name(rows: Sequence[_Row], samples: Sequence[Sample], file: Path) -> list[str]:
    """The prompt of the row whose `file` is the end of the sample's path; there must be one, and it alone."""
    by_last: dict[str, list[_Row]] = {}
    for row in rows:
        by_last.setdefault(PurePath(row.file).name, []).append(row)
    chosen: list[_Row] = []
    missing: list[Sample] = []
    for sample in samples:
        parts = PurePath(sample.name).parts
        fitting = [
            row
            for row in by_last.get(parts[-1], [])
            if Path(row.file).absolute() == Path(sample.name).absolute()
            or PurePath(row.file).parts == parts[-len(PurePath(row.file).parts) :]
        ]
        if len(fitting) > 1:
            lines = " and ".join(str(row.line) for row in fitting[:2])
            raise InputError(f"--prompts {file}: lines {lines} both name {sample.name}; leave one")
        chosen += fitting
        missing += [] if fitting else [sample]
    if missing:
        raise InputError(
            f"--prompts {file}: {len(missing)} of {len(samples)} samples stand in none of its {len(rows)} rows, "
            f"the first is {missing[0].name}"
        )
    seen: dict[int, Sample] = {}
    for row, sample in zip(chosen, samples, strict=True):
        other = seen.setdefault(row.line, sample)
        if other is not sample:
            raise InputError(
                f"--prompts {file}: line {row.line} may mean {other.name} or {sample.name}; write more of the path"
            )
    return [row.prompt for row in chosen]
