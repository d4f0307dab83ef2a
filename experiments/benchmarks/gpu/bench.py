"""Runs the parts one after the other within a time, and writes the record and its page."""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from experiments.benchmarks.gpu.part_process import PartProcess
from experiments.benchmarks.gpu.parts import PARTS, PLAN, Part
from experiments.benchmarks.gpu.record import Case, Device, PartRecord, Record, to_json
from experiments.benchmarks.gpu.table import page
from flowrl.base.amounts import count
from flowrl.base.atomic_file import write_atomically
from flowrl.base.environment import environment
from flowrl.base.errors import UserError
from flowrl.doctor.nvidia import graphics

_WORTH_STARTING_S = 20.0


def run(*, small: bool, seconds: float, names: tuple[str, ...], commit: str) -> Record:
    """Measure the parts of these names in at most `seconds`; raises UserError where there is no GPU for real shapes.

    `commit` is written where the code lies in no repository.
    """
    began = time.monotonic()
    device = _device(small)
    with tempfile.TemporaryDirectory() as made:
        folder, end = Path(made), began + seconds
        plan = PartProcess(PLAN, folder, small=small, until=end)
        parts = [_part(part, folder, small, end) for part in PARTS if part.name in names]
        parts.append(plan.record())
    where = environment()
    return Record(
        small=small,
        seconds=round(time.monotonic() - began, 1),
        device=device,
        environment=replace(where, command=_command(), git_commit=where.git_commit or commit or None),
        parts=tuple(parts),
    )


def write(record: Record, folder: Path) -> tuple[Path, Path]:
    """Write JSON and page as <date>-<device>, with a number where that is taken; returns both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    device = re.sub(r"[^a-z0-9]+", "-", record.device.name.lower()).strip("-")
    stem = f"{record.environment.started[:10]}-{device}{'-small' if record.small else ''}"
    number, name = 1, stem
    while (folder / f"{name}.json").exists():
        number += 1
        name = f"{stem}-{number}"
    json_file, table_file = folder / f"{name}.json", folder / f"{name}.md"
    write_atomically(json_file, to_json(record).encode())
    write_atomically(table_file, page(record).encode())
    return json_file, table_file


def _part(part: Part, folder: Path, small: bool, end: float) -> PartRecord:
    left = end - time.monotonic()
    if left < _WORTH_STARTING_S:
        case = Case(name="all of it", outcome="skipped", reason=f"{max(left, 0):.0f} s were left of the time")
        return PartRecord(name=part.name, title=part.title, cases=(case,))
    began = time.monotonic()
    record = PartProcess(part, folder, small=small, until=began + min(part.seconds, left)).record()
    print(f"{part.title}: {count(len(record.cases), 'case')} in {time.monotonic() - began:.0f} s", flush=True)
    return record


def _device(small: bool) -> Device:
    if small:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Device(name=f"CPU {platform.machine()}", driver="", memory=memory)
    found = graphics()
    if not found.gpus:
        said = found.complaint or "nvidia-smi finds none"
        raise UserError(f"no NVIDIA GPU here: {said}; --small tries everything on the CPU, with tiny shapes")
    return Device(name=found.gpus[0].name, driver=found.driver, memory=found.gpus[0].total)


def _command() -> str:
    return shlex.join(["python", "-m", "experiments.benchmarks.gpu", *sys.argv[1:]])
