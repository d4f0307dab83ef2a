"""One call of a reward, held to what a reward promises."""

from __future__ import annotations

import torch

from flowrl.core.errors import UserError
from flowrl.protocols import Reward
from flowrl.types import RewardInput


class RewardInputError(UserError, ValueError):
    """A reward that cannot score what it is given."""


def call_reward(reward: Reward, batch: RewardInput) -> torch.Tensor:
    """The scores [B] float32 of a batch, on the CPU, without gradient.

    Raises RewardInputError when the reward refuses the batch, ValueError when it returns another shape.
    """
    try:
        with torch.no_grad():
            scores = reward(batch)
    except ValueError as error:  # which is how a reward says that the batch is none for it
        raise RewardInputError(f"reward {reward.name!r} refuses its batch: {error}") from error
    size = len(batch.prompts)
    if scores.shape != (size,):
        raise ValueError(f"reward {reward.name!r} must return one score per sample, [{size}], got {list(scores.shape)}")
    return scores.float().cpu()
