"""Ctrl-C, SIGTERM and SIGUSR1 as a wish to stop after the step at hand."""

from __future__ import annotations

import signal
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Install with `with`; `asked` names the signal once one came. A second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.asked: str | None = None
        self._before: dict[int, signal.Handlers] = {}

    def __enter__(self) -> StopRequest:
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._note)  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.asked is not None:
            raise KeyboardInterrupt
        self.asked = signal.Signals(number).name
