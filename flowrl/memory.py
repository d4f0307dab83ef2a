"""How much memory processes hold."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from flowrl.types import Metric

_GIB = 2**30


def process_bytes() -> int:
    """The resident memory of this process; its peak where the system does not tell the present value."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class MemoryMeter:
    """The memory of driver and actors, and the most that was seen of both together."""

    def __init__(self) -> None:
        self._peak = 0

    def metrics(self, actors_bytes: int) -> list[Metric]:
        """In GiB, now and at the peak so far."""
        driver = process_bytes()
        self._peak = max(self._peak, driver + actors_bytes)
        return [
            Metric(key="memory/driver_gib", value=driver / _GIB),
            Metric(key="memory/actors_gib", value=actors_bytes / _GIB),
            Metric(key="memory/peak_gib", value=self._peak / _GIB),
        ]
