"""A scorer with a gauge; a module of its own, so that actors can import it."""

from __future__ import annotations

import torch

from flowrl.actors.scorer import Scorer


def local_elements(module: torch.nn.Module) -> int:
    """How many weights this rank holds of a sharded module; what the others hold counts for nothing."""
    total = 0
    for parameter in module.parameters():
        partition = parameter.ds_tensor if hasattr(parameter, "ds_tensor") else parameter
        total += partition.numel()
    return total


class MeasuredScorer(Scorer):
    """Tells how much of its latent reward it holds."""

    def elements(self) -> int:
        """The weights of the latent reward on this rank."""
        return local_elements(self._rewards["dit_reward"].module)  # type: ignore[attr-defined]
