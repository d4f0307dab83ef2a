"""What a run says on a terminal and elsewhere."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import random
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import pytest
from run_fixture import FakeRun, config_of, training_values, write_run

from flowrl.console import Console

_RUN = FakeRun(steps=4, every=2, prompts=("a large red circle on sand",))


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal:
    """A real terminal device to write to, and what was written."""

    def __init__(self) -> None:
        self._reader, writer = pty.openpty()
        self.stream: TextIO = os.fdopen(writer, "w", encoding="utf-8")
        self._parts: list[bytes] = []
        # Read all the while: the device holds a few thousand characters, then its writer waits.
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # how Linux says that the other side is closed
            while part := os.read(self._reader, 4096):
                self._parts.append(part)
        os.close(self._reader)

    def text(self) -> str:
        """All that was written; ends the writing."""
        self.stream.close()
        self._thread.join()
        return b"".join(self._parts).decode().replace("\r\n", "\n")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("NO_COLOR", raising=False)
    made = Terminal()
    yield made
    made.text()


def talk(console: Console, clock: Clock, *, first: int = 1) -> None:
    """The first steps of a run, 10 s each, with an evaluation after the second."""
    noise = random.Random(0)
    with console:
        console.phase("starting actors")
        console.evaluation(first - 1, {"dit_reward": 1.2, "hpsv3": 3.4})
        for step in (first, first + 1):
            console.phase("rollout")
            clock.now += 10
            values = training_values(_RUN, step, noise) | {"reward/total/mean": 0.5 * step, "time/step_s": 10.0}
            if step == first + 1:
                console.evaluation(step, {"dit_reward": 1.35, "hpsv3": 3.3})
            console.step(step, values | {"policy/kl": 0.00125})


def spoken(tmp_path: Path, run: FakeRun = _RUN, *, first: int = 1) -> list[str]:
    stream, clock = io.StringIO(), Clock()
    talk(Console(config_of(run, tmp_path), stream=stream, clock=clock), clock, first=first)
    return stream.getvalue().splitlines()


def test_header_says_what_the_run_is(tmp_path: Path) -> None:
    lines = spoken(tmp_path)
    assert lines[:7] == [
        "flowrl ditreward",
        "  policy  sd3 pocket, LoRA rank 32",
        "  reward  dit_reward; watching hpsv3 and oracle",
        "  step    12 prompts \u00d7 16 images, 4 steps",
        "  on      cpu, split: 2 rollout, 2 scorer, 2 learner",
        f"  writes  {tmp_path}/ditreward",
        f"  watch   tensorboard --logdir {tmp_path}/ditreward",
    ]


def test_elsewhere_each_step_is_one_plain_line(tmp_path: Path) -> None:
    assert spoken(tmp_path)[7:] == [
        "starting actors ...",
        "evaluation after step 0: dit_reward 1.200",
        "rollout ...",
        "step 1/4  reward 0.500  held-out dit_reward 1.200  kl 0.00125  10 s/step  30 s left",
        "evaluation after step 2: dit_reward 1.350 (+0.150)",
        "step 2/4  reward 1.000  held-out dit_reward 1.350 (+0.150)  kl 0.00125  10 s/step  20 s left",
    ]


def test_after_a_resume_the_pace_is_that_of_the_steps_done_now(tmp_path: Path) -> None:
    lines = spoken(tmp_path, replace(_RUN, steps=104), first=101)
    assert lines[-1].startswith("step 102/104")
    assert lines[-1].endswith("10 s/step  20 s left")


def test_a_terminal_gets_one_live_line(tmp_path: Path, terminal: Terminal) -> None:
    clock = Clock()
    talk(Console(config_of(_RUN, tmp_path), stream=terminal.stream, clock=clock), clock)
    text = terminal.text()
    assert text.count("\n") == 7 + 2 + 1  # header, two evaluations, and the end of the live line
    last = text.rstrip("\n").split("\r\x1b[2K")[-1]
    assert re.sub(r"\x1b\[\d+m", "", last) == (
        "\u2501" * 9 + "\u2500" * 9 + " step 2/4 \u00b7 reward 1.000 \u00b7 held-out dit_reward 1.350 (+0.150) "
        "\u00b7 10 s/step \u00b7 20 s left"
    )
    assert "\x1b[1mflowrl ditreward\x1b[0m" in text
    assert "\u00b7 rollout" in text


def test_the_live_line_fits_a_narrow_terminal(
    tmp_path: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    clock = Clock()
    talk(Console(config_of(_RUN, tmp_path), stream=terminal.stream, clock=clock), clock)
    live = [re.sub(r"\x1b\[\d+m", "", part) for part in terminal.text().split("\r\x1b[2K") if "\u2500" in part]
    assert live
    assert max(len(line.split("\n")[0]) for line in live) == 49


def test_no_color_is_respected(tmp_path: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    clock = Clock()
    talk(Console(config_of(_RUN, tmp_path), stream=terminal.stream, clock=clock), clock)
    text = terminal.text()
    assert "step 2/4" in text
    assert not re.search(r"\x1b\[\d+m", text)


def test_a_dumb_terminal_gets_plain_lines(tmp_path: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    clock = Clock()
    talk(Console(config_of(_RUN, tmp_path), stream=terminal.stream, clock=clock), clock)
    assert "\x1b" not in terminal.text()


def test_a_stream_without_unicode_gets_ascii(tmp_path: Path) -> None:
    raw = io.BytesIO()
    write_run(tmp_path, _RUN)
    console = Console(config_of(_RUN, tmp_path), stream=io.TextIOWrapper(raw, encoding="ascii"), clock=Clock())
    console.note("caf\u00e9")
    console.close()
    text = raw.getvalue().decode("ascii")
    assert "12 prompts x 16 images" in text
    assert "caf?" in text
    assert re.search(r"dit_reward +1\.200 -> \d\.\d{3}  \+\d\.\d{3} \+/- 0\.010", text)


def test_close_sums_up_what_the_run_wrote(tmp_path: Path) -> None:
    path = write_run(tmp_path, replace(_RUN, ratio=4e-4, oracle_gain=-0.2))
    stream, clock = io.StringIO(), Clock()
    console = Console(config_of(_RUN, tmp_path), stream=stream, clock=clock)
    clock.now += 75
    console.close(path / "report.html")
    lines = stream.getvalue().splitlines()
    assert any(
        re.fullmatch(r"dit_reward rose from 1\.200 to \d\.\d+ \(\+0\.\d+ \u00b1 0\.010\)\.", line) for line in lines
    )
    assert any(line.startswith("dit_reward rose while oracle") for line in lines)
    assert any(re.match(r"  oracle_shape +0\.640 \u2192 0\.\d+  -0\.\d+ \u00b1 0\.002", line) for line in lines)
    assert any(line.startswith("warning: The replay does not repeat the rollout") for line in lines)
    assert lines[-1] == f"1 min 15 s in all; report: {path}/report.html"


def test_close_without_anything_on_disk_is_quiet(tmp_path: Path) -> None:
    stream = io.StringIO()
    Console(config_of(_RUN, tmp_path), stream=stream, clock=Clock()).close()
    assert len(stream.getvalue().splitlines()) == 8
