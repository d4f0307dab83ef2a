"""How often the library that downloads took up a connection that broke: counted, and kept off the console."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


class Breaks(logging.Filter):
    """Counts what the library says of broken connections, and lets none of it through."""

    def __init__(self) -> None:
        super().__init__()
        self._taken_up = 0

    @property
    def tries(self) -> int:
        """How often the file was asked for, the first time among them."""
        return 1 + self._taken_up

    def filter(self, record: logging.LogRecord) -> bool:
        """Count a record that says that another try comes."""
        self._taken_up += "Trying to resume" in record.getMessage()
        return False


@contextmanager
def counted_breaks() -> Iterator[Breaks]:
    """While this is open, the library says each break with a full URL to the yielded counter alone."""
    logger = logging.getLogger("huggingface_hub.file_download")
    breaks, level = Breaks(), logger.level
    logger.addFilter(breaks)
    logger.setLevel(logging.WARNING)  # HF_HUB_VERBOSITY=error would keep them from the counter too
    try:
        yield breaks
    finally:
        logger.setLevel(level)
        logger.removeFilter(breaks)
