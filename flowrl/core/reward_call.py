"""Calls of a reward, each held to what a reward promises."""

from __future__ import annotations

from collections.abc import Callable

import torch

from flowrl.base.errors import UserError
from flowrl.protocols import Reward
from flowrl.types import RewardInput


class RewardInputError(UserError, ValueError):
    """A reward that cannot score what it is given; the cause is the reward's own error."""


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


def score_in_parts(reward: Reward, size: int, take: Callable[[range], RewardInput]) -> torch.Tensor:
    """The scores [size] float32 of samples, on the CPU, `reward.batch_size` of them in one call.

    `take` gives the samples of some rows when their turn comes, so that no more than a call's are in memory; of a whole
    batch, it is `batch.take`. Raises what `call_reward` raises.
    """
    rows = range(size)
    step = reward.batch_size
    return torch.cat([call_reward(reward, take(rows[start : start + step])) for start in range(0, size, step)])
