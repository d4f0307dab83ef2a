"""Mistakes in batch scripts that bash and shellcheck do not see, because they are about what SLURM reads and sends."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from pathlib import Path

_DIRECTIVE = "#SBATCH"


def problems(script: str) -> list[str]:
    """What is wrong with the text of a batch script, a line each; empty when nothing is."""
    lines = script.splitlines()
    code = [(number, line) for number, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
    options = _options(lines[: code[0][0] - 1] if code else lines)
    return [
        *(
            []
            if lines and lines[0].startswith("#!")
            else ["line 1: a batch script begins with #!, or sbatch refuses it"]
        ),
        *_directives(lines, code[0][0] if code else len(lines)),
        *(f"--{name} is given {count} times, and the last counts" for name, count in _repeated(options)),
        *_signal(options, [line for _, line in code]),
        *_output(options),
        *_requeue(options, [line for _, line in code]),
    ]


def _options(header: list[str]) -> list[tuple[str, str]]:
    """Name and value of each directive."""
    found = (re.match(rf"{_DIRECTIVE}\s+--([\w-]+)(?:[= ](\S*))?", line) for line in header)
    return [(one[1], one[2] or "") for one in found if one]


def _repeated(options: list[tuple[str, str]]) -> list[tuple[str, int]]:
    return [(name, count) for name, count in Counter(name for name, _ in options).items() if count > 1]


def _directives(lines: list[str], first_command: int) -> list[str]:
    found = []
    for number, line in enumerate(lines, 1):
        if line.startswith(_DIRECTIVE):
            if number > first_command:
                found.append(f"line {number}: SLURM reads no {_DIRECTIVE} after the first command")
            if "$" in line:
                found.append(f"line {number}: SLURM expands no variables: {line}")
            if not re.match(rf"{_DIRECTIVE}\s+-", line):
                found.append(f"line {number}: an option of sbatch begins with -: {line}")
        elif _resembles(line):
            found.append(f"line {number}: SLURM takes this for a comment: {line}")
    return found


def _resembles(comment: str) -> bool:
    """Whether a comment was meant as a directive."""
    found = re.match(r"#+\s*(\w+)\s+-", comment)
    return found is not None and bool(difflib.get_close_matches(found[1].upper(), ["SBATCH"], cutoff=0.7))


def _signal(options: list[tuple[str, str]], code: list[str]) -> list[str]:
    asked = [value for name, value in options if name == "signal"]
    if not asked:
        return []
    found = []
    if not asked[-1].startswith("B:"):
        found.append(f"--signal={asked[-1]} without B: goes to all processes but the batch script, Ray's among them")
    if "@" not in asked[-1]:
        found.append(f"--signal={asked[-1]} says no time: 60 s before the limit is seldom enough; write B:USR1@SECONDS")
    text = "\n".join(code)
    hands_over = bool(code) and code[-1].startswith("exec ")
    heeds = re.search(r"^\s*trap .*USR1", text, flags=re.MULTILINE) and re.search(r"\bwait\b", text)
    if not (hands_over or heeds):
        found.append("the signal ends the batch script: end it by exec of what heeds the signal, or trap it and wait")
    return found


def _output(options: list[tuple[str, str]]) -> list[str]:
    given = dict(options)
    if "output" not in given:
        return ["there is no --output: it would go to slurm-*.out in the folder of the call"]
    path = given["output"]
    wanted = ("%A", "%a") if "array" in given else ("%j",)
    found = [f"--output={path} has no {sign}: jobs would write one file" for sign in wanted if sign not in path]
    folder = Path(path).parent
    if "%" in str(folder):
        found.append(f"--output={path}: SLURM makes no folders, so that no % can stand in their names")
    elif not folder.is_dir():
        found.append(f"--output={path}: there is no folder {folder}, and SLURM makes none: the job would fail at once")
    return found


def _requeue(options: list[tuple[str, str]], code: list[str]) -> list[str]:
    given = dict(options)
    found = []
    if "requeue" in given and given.get("open-mode") != "append":
        found.append("--requeue without --open-mode=append: a later attempt empties the output of the one before")
    for line in code:
        if "array" in given and re.search(r"scontrol requeue \S*SLURM_(ARRAY_)?JOB_ID\}?\"?(\s|$)", line):
            found.append(f"a job id names the whole array; an element is ARRAY_JOB_ID_TASK_ID: {line.strip()}")
    return found
