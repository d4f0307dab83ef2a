"""What a check is and what it comes to."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

from flowrl.base.errors import UserError

_logger = logging.getLogger(__name__)
_Got = TypeVar("_Got")
Verdict = Literal["ok", "note", "problem"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check came to: a problem keeps a run from starting or from being right, a note is worth knowing.

    Example: ``Finding(verdict="problem", found="64 MiB", advice="docker run --shm-size=16g ...")``
    """

    verdict: Verdict
    found: str
    advice: str = ""  # the command to run, or what else to do; a line each


@dataclass(frozen=True, kw_only=True)
class Check:
    """One question about the machine or the run."""

    subject: str  # the group in which it is shown
    name: str
    look: Callable[[], Finding]

    def made(self) -> Entry:
        """Make the check now; what raises is a problem like any other."""
        return tried(self.subject, self.name, self.look, lambda finding: finding)[0]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A check that was made."""

    subject: str
    name: str
    finding: Finding


def fine(found: str) -> Finding:
    """Nothing to do."""
    return Finding(verdict="ok", found=found)


def note(found: str, advice: str = "") -> Finding:
    """Worth knowing; a run starts all the same."""
    return Finding(verdict="note", found=found, advice=advice)


def problem(found: str, advice: str) -> Finding:
    """To be put right first."""
    return Finding(verdict="problem", found=found, advice=advice)


def examine(checks: Iterable[Check]) -> Iterator[Entry]:
    """Make checks that do not depend on each other, each as its entry is asked for."""
    return (check.made() for check in checks)


def tried(
    subject: str, name: str, get: Callable[[], _Got], tell: Callable[[_Got], Finding]
) -> tuple[Entry, _Got] | tuple[Entry, None]:
    """Get something that later checks need, and tell what it is; None where that raises, which the entry then says."""
    try:
        got = get()
        return Entry(subject=subject, name=name, finding=tell(got)), got
    except (Exception, SystemExit) as error:
        _logger.debug("check %r", name, exc_info=True)
        return Entry(subject=subject, name=name, finding=failed(error)), None


def guarded(entries: Generator[Entry, None, _Got]) -> Generator[Entry, None, _Got | None]:
    """The entries as they come, and what their generator returns; what raises between two of them is an entry as well,
    and the last, and then there is nothing to return.
    """
    try:
        return (yield from entries)
    except (Exception, SystemExit) as error:
        _logger.debug("between two checks", exc_info=True)
        yield Entry(subject="The examination itself", name="next check", finding=failed(error))
        return None


def failed(error: BaseException) -> Finding:
    """The finding for an error: a UserError says what to do itself, and nobody foresaw another."""
    if isinstance(error, UserError):
        return problem(error.problem, error.advice)
    text = str(error).strip().partition("\n")[0]
    return problem(
        f"this could not be examined: {type(error).__name__}{f': {text}' if text else ''}",
        "if nothing else on this page explains it: the same command with --traceback says where; report it with that",
    )
