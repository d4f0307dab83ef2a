"""A role that hangs and dies; a module of its own, so that actors can import it."""

from __future__ import annotations

import os
import time


class Unreliable:
    """What an actor must not be."""

    def sleep(self, seconds: float) -> None:
        """Hang."""
        time.sleep(seconds)

    def die(self) -> None:
        """End the process as a crash does."""
        os._exit(1)
