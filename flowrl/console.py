"""What a run says while it goes on: one live line on a terminal, one plain line per step elsewhere."""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self, TextIO

from flowrl.config import ConfigError, RunConfig
from flowrl.registry import part_of
from flowrl.report.run_record import read_run
from flowrl.report.verdict import Change, changes, verdict, violations
from flowrl.report.wording import TIMES, duration, fixed, listed, significant

_BAR = 18  # characters
_ERASE_LINE = "\r\x1b[2K"
_STYLES = {"bold": "1", "dim": "2", "good": "32", "bad": "31", "neutral": "0"}
_PLAIN = {"\u00b1": "+/-", "\u00d7": "x", "\u2212": "-", "\u2192": "->", "\u2501": "=", "\u2500": "-", "\u00b7": "|"}


class Console:
    """The voice of one run. It starts with a header at the first thing it says and ends with `close`.

    `stream` is standard output unless given; `clock` returns seconds. Colours need a terminal without NO_COLOR.
    """

    def __init__(
        self, config: RunConfig, *, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._config = config
        self._stream = sys.stdout if stream is None else stream
        self._clock = clock
        self._terminal = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._colours = self._terminal and not os.environ.get("NO_COLOR")
        self._live = ""  # what stands on the live line
        self._phase = ""
        self._began = clock()
        self._header_is_out = False
        self._first_step: int | None = None  # before the first step of this process, which may have resumed
        self._step = 0
        self._stepping_since = self._began
        self._reward: float | None = None
        self._evaluated: dict[str, tuple[float, float]] = {}  # name -> first and newest mean

    def header(self) -> None:
        """Say what the run is; done unasked before anything else is said."""
        if self._header_is_out:
            return
        self._header_is_out = True
        config = self._config
        rollout, placement = config.rollout, config.placement
        rewards = listed([spec.metric_name for spec in config.rewards.train]) or "nothing (evaluation alone)"
        names = [spec.metric_name for spec in config.rewards.watch]
        watched = listed([name for name in names if part_of(name, names) is None])
        actors = f"{placement.num_scorers} scorer, {placement.num_learners} learner"
        if not placement.learners_sample:
            actors = f"{placement.num_rollouts} rollout, {actors}"
        where = "one process" if placement.mode == "local" else f"{placement.mode}: {actors}"
        rows = {
            "policy": f"{config.model.family} {config.model.path}, LoRA rank {config.model.lora_rank}",
            "reward": rewards + (f"; watching {watched}" if watched else ""),
            "step": f"{rollout.prompts_per_step} prompts {TIMES} {rollout.group_size} images, {config.run.steps} steps",
            "on": f"{placement.device}, {where}",
            "writes": config.run.dir,
            "watch": f"tensorboard --logdir {config.run.dir}",
        }
        self._line(self._styled(f"flowrl {config.run.name}", "bold"))
        for name, text in rows.items():
            self._line(f"  {self._styled(f'{name:<8}', 'dim')}{text}")

    def phase(self, name: str) -> None:
        """Say what is being done now."""
        self.header()
        if name == self._phase:
            return
        self._phase = name
        if self._terminal:
            self._refresh()
        elif self._first_step is None:
            self._line(f"{name} ...")

    def evaluation(self, step: int, means: Mapping[str, float]) -> None:
        """Take note of the held-out means, by measure, after a step."""
        for name, mean in means.items():
            first, _ = self._evaluated.get(name, (mean, mean))
            self._evaluated[name] = (first, mean)
        trained = {name: mean for name, mean in means.items() if name in self._trained()}
        words = " ".join(f"{name} {self._score(name, mean)}" for name, mean in (trained or means).items())
        self.note(f"evaluation after step {step}: {words}")

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Report a finished step with its metrics."""
        self.header()
        if self._first_step is None:
            # The first step of a process is the first that it reports; earlier ones were done before a resume.
            self._first_step = step - 1
            spent = sum(values.get(f"time/{phase}_s", 0.0) for phase in ("step", "eval", "checkpoint"))
            self._stepping_since = self._clock() - spent
        self._step = step
        self._phase = ""
        self._reward = values.get("reward/total/mean")
        if self._terminal:
            self._refresh()
        else:
            self._line(f"step {step}/{self._config.run.steps}  {'  '.join(self._progress(values))}")

    def note(self, text: str) -> None:
        """Say something that stays."""
        self.header()
        self._line(text)
        if self._terminal and self._live:
            self._refresh()

    def close(self, report: Path | None = None) -> None:
        """Sum the run up from what it wrote: before and after of every measure, time, and where the report is."""
        self.header()
        self._live = ""
        try:
            record = read_run(Path(self._config.run.dir))
        except ConfigError:
            return self._line("")
        self._line("")
        for sentence in verdict(record):
            self._line(self._styled(sentence.text, sentence.tone))
        found = changes(record)
        names = [change.name for change in found]
        width = max((len(name) for name in names), default=0)
        for change in found:
            self._line(self._summed(change, width, part_of(change.name, names) is not None))
        for text in violations(record):
            self._line(self._styled(f"warning: {text}", "bad"))
        self._line(f"{duration(self._clock() - self._began)} in all" + (f"; report: {report}" if report else ""))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Leave the live line, so that an error message starts on a line of its own."""
        if self._live:
            self._write("\n")
            self._live = ""

    def _summed(self, change: Change, width: int, is_part: bool) -> str:
        before, after = fixed(change.before, change.decimals), fixed(change.after, change.decimals)
        if change.first_step == change.last_step:
            return f"  {change.name:<{width}}  {before}"
        tone = {"rose": "good", "fell": "bad", "held": "neutral"}[change.movement]
        line = f"  {change.name:<{width}}  {before} \u2192 {after}  {self._styled(change.words(), tone)}"
        return line if not is_part else self._styled(line, "dim")

    def _trained(self) -> list[str]:
        return [spec.metric_name for spec in self._config.rewards.train]

    def _score(self, name: str, mean: float) -> str:
        first, newest = self._evaluated[name]
        moved = f" ({fixed(newest - first, 3, signed=True)})" if newest != first else ""
        return f"{fixed(mean, 3)}{moved}"

    def _progress(self, values: Mapping[str, float]) -> list[str]:
        parts = []
        if self._reward is not None:
            parts.append(f"reward {fixed(self._reward, 3)}")
        parts += [f"held-out {name} {self._score(name, pair[1])}" for name, pair in self._evaluated.items()
                  if name in self._trained()]  # fmt: skip
        if not math.isnan(values.get("policy/kl", math.nan)):
            parts.append(f"kl {significant(values['policy/kl'])}")
        return parts + self._pace()

    def _pace(self) -> list[str]:
        if self._first_step is None or self._step <= self._first_step:
            return []
        per_step = (self._clock() - self._stepping_since) / (self._step - self._first_step)
        left = per_step * (self._config.run.steps - self._step)
        return [f"{duration(per_step)}/step", f"{duration(left)} left" if left > 0 else "done"]

    def _refresh(self) -> None:
        """Draw the live line: bar, step, numbers, phase; cut to the width of the terminal."""
        total = max(self._config.run.steps, 1)
        filled = _BAR * min(self._step, total) // total
        parts = [f"step {self._step}/{self._config.run.steps}", *self._progress({})]
        text = " " + " \u00b7 ".join([*parts, self._phase] if self._phase else parts)
        room = shutil.get_terminal_size().columns - _BAR - 1
        bar = "\u2501" * filled + self._styled("\u2500" * (_BAR - filled), "dim")
        self._live = bar + (text if len(text) <= room else f"{text[: max(room - 3, 0)]}...")
        self._write(_ERASE_LINE + self._live)

    def _line(self, text: str) -> None:
        self._write(f"{_ERASE_LINE if self._terminal else ''}{text}\n")

    def _styled(self, text: str, style: str) -> str:
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if self._colours and style != "neutral" else text

    def _write(self, text: str) -> None:
        if not self._terminal:
            text = text.replace("\u2212", "-")  # for programs that read numbers
        encoding = self._stream.encoding  # None where the stream keeps characters
        if encoding and not encoding.lower().startswith("utf"):
            text = "".join(_PLAIN.get(character, character) for character in text)
            text = text.encode(encoding, errors="replace").decode(encoding)
        self._stream.write(text)
        self._stream.flush()
