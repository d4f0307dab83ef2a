"""What nvidia-smi and the system say about NVIDIA GPUs; torch is not asked."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from flowrl.doctor.machine import GpuProcess, GpuState, Graphics

_MIB = 2**20
_PATIENCE_S = 15
_PCI = Path("/sys/bus/pci/devices")
_NVIDIA, _DISPLAY = "0x10de", "0x03"  # PCI vendor, and how the classes of display controllers begin
_GPU_FIELDS = "index,uuid,driver_version,memory.total,memory.free,name"
_PROCESS_FIELDS = "gpu_uuid,pid,used_memory,process_name"

Query = Callable[[Sequence[str]], str]


class SmiError(Exception):
    """nvidia-smi is there and gives no answer; the message says what it did."""


def graphics(query: Query | None = None, bus: Path = _PCI) -> Graphics:
    """The GPUs of this machine; `query` calls nvidia-smi with arguments, and raises as `ask_smi` does."""
    on_bus = _on_bus(bus)
    ask = query or ask_smi
    try:
        rows = _rows(ask([f"--query-gpu={_GPU_FIELDS}", "--format=csv,noheader,nounits"]), 6)
    except FileNotFoundError:
        return Graphics(on_bus=on_bus)
    except (OSError, SmiError) as error:
        return Graphics(on_bus=on_bus, complaint=str(error))
    # Old drivers know no compute_cap, and some do not tell who holds memory in a container.
    capabilities = dict(_rows(_said(ask, "--query-gpu=uuid,compute_cap"), 2))
    held = _processes(_said(ask, f"--query-compute-apps={_PROCESS_FIELDS}"))
    gpus = [
        GpuState(
            index=_number(index),
            name=name,
            total=_number(total) * _MIB,
            free=_number(free) * _MIB,
            capability=_capability(capabilities.get(uuid, "")),
            processes=tuple(process for owner, process in held if owner == uuid),
        )
        for index, uuid, _, total, free, name in rows
    ]
    return Graphics(on_bus=max(on_bus, len(gpus)), driver=rows[0][2] if rows else "", gpus=tuple(gpus))


def ask_smi(arguments: Sequence[str]) -> str:
    """What nvidia-smi prints; raises FileNotFoundError where there is none, SmiError where it fails or hangs."""
    try:
        done = subprocess.run(
            ["nvidia-smi", *arguments], capture_output=True, text=True, timeout=_PATIENCE_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise SmiError(f"nvidia-smi gave no answer in {_PATIENCE_S} s") from None
    if done.returncode != 0:
        said = " ".join((done.stdout + done.stderr).split())
        raise SmiError(f"nvidia-smi failed: {said or f'exit code {done.returncode}'}")
    return done.stdout


def _said(ask: Query, question: str) -> str:
    """The answer to a question that not every driver knows; empty where it gives none."""
    try:
        return ask([question, "--format=csv,noheader,nounits"])
    except (OSError, SmiError):
        return ""


def _on_bus(bus: Path) -> int:
    """How many NVIDIA display controllers are built in."""
    return sum(
        _read(device / "vendor") == _NVIDIA and _read(device / "class").startswith(_DISPLAY)
        for device in (bus.iterdir() if bus.is_dir() else ())
    )


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def _rows(text: str, width: int) -> list[list[str]]:
    """The lines of a table, the last column of which may hold commas."""
    rows = [[cell.strip() for cell in line.split(",", width - 1)] for line in text.splitlines()]
    return [row for row in rows if len(row) == width]


def _processes(text: str) -> list[tuple[str, GpuProcess]]:
    return [
        (uuid, GpuProcess(pid=_number(pid), name=name, memory=_number(memory) * _MIB))
        for uuid, pid, memory, name in _rows(text, 4)
    ]


def _number(text: str) -> int:
    """A whole number; 0 for what a driver does not tell, as "[N/A]"."""
    return int(text) if text.isdigit() else 0


def _capability(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    return _number(major), _number(minor)
