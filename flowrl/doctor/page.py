"""The findings as lines for a person, grouped by subject as they come, or as JSON for programs."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict

from flowrl.base.amounts import count
from flowrl.doctor.finding import Entry

_NAME, _WIDTH = 16, 120
_MARKS = {"ok": "ok", "note": "note", "problem": "PROBLEM"}
_BARE = "This machine is ready; whether a run can start on it: flowrl doctor configs/pocket/ditreward.yaml"
_INDENT = " " * (2 + 9 + _NAME + 1)


def lines(entry: Entry, before: Entry | None) -> str:
    """A finding with its advice below, and its subject above where that is not the one of the entry before."""
    heading = []
    if before is None or before.subject != entry.subject:
        heading = [entry.subject] if before is None else ["", entry.subject]
    finding = entry.finding
    mark = f"  {_MARKS[finding.verdict]:<9}"
    # What was found is wrapped; advice is not, since a command must stay in one line to be copied.
    first, *more = textwrap.wrap(finding.found, _WIDTH - len(_INDENT), break_on_hyphens=False) or [""]
    named = [f"{mark}{entry.name:<{_NAME}} {first}"]
    if len(entry.name) > _NAME:
        named = [f"{mark}{entry.name}", f"{_INDENT}{first}"]
    named += [f"{_INDENT}{line}" for line in more]
    advice = [f"{_INDENT}{'   ' if number else '-> '}{line}" for number, line in enumerate(finding.advice.splitlines())]
    return "\n".join([*heading, *named, *advice])


def verdict(entries: Sequence[Entry], config: str | None) -> str:
    """What all findings come to, in one sentence."""
    problems, notes = (sum(entry.finding.verdict == kind for entry in entries) for kind in ("problem", "note"))
    noted = f" {count(notes, 'note')}." if notes else ""
    if not problems:
        ready = f"This machine is ready for {config}: flowrl train {config}" if config else _BARE
        return f"No problem found.{noted} {ready}"
    return f"{count(problems, 'problem')}: each arrow (->) says what to do.{noted}"


def as_json(entries: Sequence[Entry], config: str | None) -> str:
    """All of it as one object."""
    worst = next((kind for kind in ("problem", "note") if any(one.finding.verdict == kind for one in entries)), "ok")
    findings = [{"subject": one.subject, "name": one.name, **asdict(one.finding)} for one in entries]
    return json.dumps({"config": config, "verdict": worst, "findings": findings}, indent=2)
