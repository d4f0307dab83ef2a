"""Runs an experiment on this machine, one run after another, each in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from flowrl.matrix.manifest import Element
from flowrl.matrix.progress import finished
from flowrl.matrix.table import State

_PASSED_ON = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


def run_all(manifest: Path, elements: Sequence[Element], say: Callable[[Element, State], None]) -> int:
    """Train what is not finished, in the order of the manifest; returns the exit code of the whole.

    `say` is told of each run that begins, ends or fails. A run that fails does not keep the next from running: seeds
    that are there are worth having. A signal goes to the run at work, which saves and ends after its step; then no
    other begins.
    """
    failed = 0
    for element in elements:
        steps = element.load().run.steps
        if finished(element.dir, steps):
            continue
        say(element, "running")
        code, stopped = _run(manifest, element)
        if stopped is not None:
            return 128 + stopped
        if code == 0 and finished(element.dir, steps):
            say(element, "done")
            continue
        if code in (0, 130):  # somebody stopped it: Ctrl-C goes to all processes of the terminal
            say(element, "begun")
            return 130
        say(element, "failed")
        failed += 1
    return 1 if failed else 0


def _run(manifest: Path, element: Element) -> tuple[int, int | None]:
    """The exit code of the run's process, and the signal that came meanwhile."""
    command = [sys.executable, "-m", "flowrl", "matrix", str(manifest), "--element", str(element.index)]
    came: list[int] = []
    with subprocess.Popen(command) as process, ExitStack() as handlers:

        def pass_on(number: int, frame: FrameType | None) -> None:
            came.append(number)
            process.send_signal(number)

        def leave_it(number: int, frame: FrameType | None) -> None:
            """The terminal tells the process itself, which ends after its step."""

        for number, handler in [*((number, pass_on) for number in _PASSED_ON), (signal.SIGINT, leave_it)]:
            handlers.callback(signal.signal, number, signal.signal(number, handler))
        code = process.wait()
    return code, came[0] if came else None
