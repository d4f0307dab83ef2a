"""What the training loop asks of a reward model; a class fits by having the members."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch

from rewards.data.store import PreferenceStore


class TrainableReward(Protocol):
    """A reward model in training: its network, and how samples of a prepared set become the network's inputs."""

    module: torch.nn.Module  # forward(*inputs) of samples of one shape to outputs [B, 1 or 2], the score first
    head_prefixes: tuple[str, ...]  # of the parameters that learn at the head's rate
    no_decay: tuple[str, ...]  # parts of the names of parameters that must not decay
    score_bias: str  # the key, in the state dict of `module`, of the bias whose first number shifts all scores

    def inputs(
        self, store: PreferenceStore, samples: torch.Tensor, seeds: torch.Tensor, device: torch.device
    ) -> tuple[Any, ...]:
        """What `module` is called with for samples [B] of one shape; noise, if any, comes from seeds [B] alone."""
        ...

    def save(
        self, folder: Path, state: dict[str, torch.Tensor], *, dtype: torch.dtype, notes: str, whole: bool
    ) -> None:
        """Write the reward folder from the whole state dict of `module`; unless `whole`, without what did not learn."""
        ...
