"""What a check is and what it comes to."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from flowrl.base.errors import UserError

_logger = logging.getLogger(__name__)
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
    """Make each check as its entry is asked for; one that raises is a problem like any other.

    So is what raises between two checks, after which there are no more.
    """
    coming = iter(checks)
    while True:
        try:
            check = next(coming)
        except StopIteration:
            return
        except (Exception, SystemExit) as error:
            _logger.debug("between two checks", exc_info=True)
            yield Entry(subject="The examination itself", name="next check", finding=failed(error))
            return
        yield Entry(subject=check.subject, name=check.name, finding=_outcome(check))


def failed(error: BaseException) -> Finding:
    """The finding for an error that nobody foresaw, or whose message says what to do."""
    if isinstance(error, UserError):
        found, _, advice = str(error).rpartition("; ")
        return problem(found, advice) if found else problem(str(error), "")
    text = str(error).strip().partition("\n")[0]
    return problem(
        f"this could not be examined: {type(error).__name__}{f': {text}' if text else ''}",
        "if nothing else on this page explains it: the same command with --traceback says where; report it with that",
    )


def _outcome(check: Check) -> Finding:
    try:
        return check.look()
    except (Exception, SystemExit) as error:
        _logger.debug("check %r", check.name, exc_info=True)
        return failed(error)
