"""Roles that tests start on Ray beside the real ones; a module of its own, so that actors can import them."""

from __future__ import annotations

import os
import time

from flowrl.actors.scorer import Scorer
from flowrl.actors.sharding import local_elements


class MeasuredScorer(Scorer):
    """A scorer that tells how much of its latent reward it holds."""

    def elements(self) -> int:
        """The weights of the latent reward on this rank."""
        return local_elements(self._rewards["dit_reward"].module)  # type: ignore[attr-defined]


class Unreliable:
    """A role that can hang and die."""

    def sleep(self, seconds: float) -> None:
        """Hang."""
        time.sleep(seconds)

    def die(self) -> None:
        """End the process as a crash does."""
        os._exit(1)
