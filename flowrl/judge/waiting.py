"""How long to wait before a question is put again, and for all questions together."""

from __future__ import annotations

import re
import threading
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from flowrl.core.seeds import derive

FIRST_WAIT_S = 1.0  # doubled after each try
LONGEST_WAIT_S = 60.0  # but for what an endpoint asks for


class Halted(Exception):
    """The questions of this round were called off."""


class Halt:
    """Calls off what is not under way yet; waits end at once."""

    def __init__(self) -> None:
        self._called = threading.Event()

    def call(self) -> None:
        """From now on every `check` and `sleep` raises Halted."""
        self._called.set()

    def check(self) -> None:
        """Raise Halted where it was called."""
        if self._called.is_set():
            raise Halted

    def sleep(self, seconds: float) -> None:
        """Wait so long; raises Halted at once when it is called meanwhile."""
        if self._called.wait(seconds):
            raise Halted


class Gate:
    """Holds all questions back until a time, when the endpoint has asked one of them to wait."""

    def __init__(self) -> None:
        self._opens = 0.0
        self._lock = threading.Lock()

    def close(self, seconds: float) -> None:
        """Let nothing through for so long."""
        with self._lock:
            self._opens = max(self._opens, time.monotonic() + seconds)

    def wait(self, halt: Halt) -> None:
        """Return when the gate is open; raises Halted."""
        while (left := self._opens - time.monotonic()) > 0:
            halt.sleep(left)
        halt.check()


def backoff(tried: int, key: str) -> float:
    """Seconds to wait after so many tries (from 1) of a question: doubled each time, less a jitter of up to a half.

    The jitter comes from the question, so that those that failed together are not put again together.
    """
    whole = min(FIRST_WAIT_S * 2.0 ** min(tried - 1, 32), LONGEST_WAIT_S)
    return whole * (0.5 + derive("judge", key, tried) / 2**64)


def retry_after(text: str | None, now: datetime | None = None) -> float | None:
    """The seconds that a Retry-After header asks for (RFC 9110, 10.2.3): a number, or an HTTP date; None for neither.

    `now` is the time, UTC; a date that has passed is 0. Fractions of a second, which the RFC has not, are understood.
    """
    if text is None:
        return None
    word = text.strip()
    if re.fullmatch(r"[0-9]{1,12}(\.[0-9]+)?", word):
        return float(word)
    try:
        date = parsedate_to_datetime(word)
    except ValueError:
        return None
    aware = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
    return max(0.0, (aware - (now or datetime.now(UTC))).total_seconds())
