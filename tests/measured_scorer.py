"""A scorer with a gauge; a module of its own, so that actors can import it."""

from __future__ import annotations

from flowrl.actors.scorer import Scorer
from flowrl.actors.sharding import local_elements


class MeasuredScorer(Scorer):
    """Tells how much of its latent reward it holds."""

    def elements(self) -> int:
        """The weights of the latent reward on this rank."""
        return local_elements(self._rewards["dit_reward"].module)  # type: ignore[attr-defined]
