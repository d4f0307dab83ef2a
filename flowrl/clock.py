"""Wall-clock seconds of the named phases of a step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from flowrl.types import Metric


class Clock:
    """Collects `time/<phase>_s` metrics."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the body of a `with`; phases of one name add up."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - began

    def metrics(self) -> list[Metric]:
        """One metric per phase."""
        return [Metric(key=f"time/{name}_s", value=seconds) for name, seconds in self._seconds.items()]

    def seconds(self, name: str) -> float:
        """What a phase took so far."""
        return self._seconds[name]
