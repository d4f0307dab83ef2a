"""Ctrl-C, SIGTERM, SIGUSR1 and a closed terminal: an end in good order, at once or after the step at hand."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_END = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class Stopped(BaseException):
    """A signal ended the program where there was nothing to save; no handler of errors should swallow it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"{signal.Signals(number).name}: ended before a step could be saved")
        self.exit_code = 128 + number


def _heeded(numbers: tuple[signal.Signals, ...]) -> list[signal.Signals]:
    """Those that whoever started the program did not have it ignore, as nohup does with SIGHUP."""
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def stop_at_once() -> Iterator[None]:
    """Within the context SIGTERM, SIGUSR1 and SIGHUP end the program as Ctrl-C does, all closed; raises Stopped."""
    came: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.default_int_handler(number, frame)  # the one exception that extension modules let through

    numbers = _heeded(_END)
    before = [signal.signal(number, interrupt) for number in numbers]
    try:
        yield
    except KeyboardInterrupt:
        if not came:
            raise
        raise Stopped(came[0]) from None
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


class StopRequest:
    """Install with `with`; `asked` names the signal once one came. A second Ctrl-C stops at once.

    The handlers from before come back at the end, also where a library has put its own in between.
    """

    def __init__(self) -> None:
        self.asked: str | None = None
        self._before: dict[int, signal.Handlers] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, *_heeded(_END)):
            self._before[number] = signal.signal(number, self._note)  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def obey(self) -> None:
        """After the context: act on the signal that came within it, as the handlers before it say."""
        if self.asked is not None:
            signal.raise_signal(signal.Signals[self.asked])

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.asked is not None:
            raise KeyboardInterrupt
        self.asked = signal.Signals(number).name
