"""Runs a part in a process of its own, so that it starts with an empty GPU and can be stopped."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import time
from dataclasses import asdict
from multiprocessing.process import BaseProcess
from pathlib import Path

from experiments.benchmarks.gpu.parts import Part
from experiments.benchmarks.gpu.record import Case, PartRecord, case_from

_GRACE_S = 15.0  # beyond a part's time, for the call that it is in

_IMPORTED_ONCE = [f"experiments.benchmarks.gpu.{name}" for name in ("update", "reward_paths")]


class PartProcess:
    """A part that runs; its cases are in a file as soon as they are known."""

    def __init__(self, part: Part, folder: Path, *, small: bool, until: float) -> None:
        self._part, self._file, self._until = part, folder / f"{part.name}.jsonl", until
        self._file.touch()
        # A process that was forked cannot use a GPU that its parent has looked at; importing anew costs seconds each.
        context = multiprocessing.get_context("forkserver") if small else multiprocessing.get_context("spawn")
        if small:
            context.set_forkserver_preload(_IMPORTED_ONCE)
        self._process: BaseProcess = context.Process(target=_run, args=(part, small, until, str(self._file)))
        self._process.start()
        self._began = time.monotonic()  # the first start of all waits for the process that the others are forked from

    def record(self) -> PartRecord:
        """What it found, once it has ended or its time is over; it is stopped then."""
        self._process.join(max(0.0, self._until + _GRACE_S - time.monotonic()))
        stopped = self._process.is_alive()
        if stopped:
            self._process.kill()
            self._process.join()
        seconds = time.monotonic() - self._began
        rows = self._file.read_text(encoding="utf-8").split("\n")[:-1]  # less one that was being written
        cases = [case_from(json.loads(row)) for row in rows]
        if stopped:
            cases.append(Case(name="the rest", outcome="skipped", reason=f"stopped after {seconds:.0f} s"))
        elif self._process.exitcode and not any(case.outcome == "failed" for case in cases):
            cases.append(Case(name="the rest", outcome="failed", reason=f"ended with {self._process.exitcode}"))
        return PartRecord(name=self._part.name, title=self._part.title, cases=tuple(cases))


def _run(part: Part, small: bool, until: float, file: str) -> None:
    """In the part's own process: write each case as it comes, and what ended the part before its end.

    Libraries are imported here, and not by the process that waits.
    """
    with open(file, "a", encoding="utf-8") as stream:
        try:
            import torch

            from experiments.benchmarks.gpu.setting import Setting

            if small:
                torch.set_num_threads(1)  # tiny products on many threads wait for one another
            for case in importlib.import_module(part.module).run(Setting(small=small, until=until)):
                _write(stream, case)
        except Exception as error:
            lines = str(error).strip().splitlines()
            reason = f"{type(error).__name__}: {lines[0] if lines else ''}"
            _write(stream, Case(name="the rest", outcome="failed", reason=reason))
            raise


def _write(stream: object, case: Case) -> None:
    print(json.dumps(asdict(case)), file=stream, flush=True)  # type: ignore[call-overload]
