"""Calls of a reward, each held to what a reward promises."""

from __future__ import annotations

from collections.abc import Callable

import torch

from flowrl.base.errors import UserError
from flowrl.reward_protocols import Reward
from flowrl.types import RewardInput


class RewardInputError(UserError, ValueError):
    """A reward that cannot score what it is given; the cause is the reward's own ValueError."""


class RewardCallError(UserError, RuntimeError):
    """A reward that fails on a batch, by a defect or for want of memory; the cause, if any, is what it raised."""


def call_reward(reward: Reward, batch: RewardInput) -> torch.Tensor:
    """The scores [B] float32 of a batch, on the CPU, without gradient.

    Raises RewardInputError when the reward refuses the batch, RewardCallError when it raises anything but a ValueError,
    SystemExit too, or returns anything but one floating-point number per sample. A UserError of the reward's own, such
    as a CheckpointError of a part that it loads late, comes through as it is.
    """
    try:
        with torch.no_grad():
            scores = reward(batch)
    except UserError:  # before ValueError, which some of them are as well
        raise
    except ValueError as error:
        raise RewardInputError(f"reward {reward.name!r} {reason(error)}") from error
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise RewardCallError(
            f"{_called(reward, batch)}: out of memory with {len(batch.prompts)} samples in one call; lower its option "
            f"batch_size, which is {reward.batch_size}{_after_colon(error)}"
        ) from error
    except (Exception, SystemExit) as error:  # a reward has no say in when the program ends
        raise RewardCallError(f"{_called(reward, batch)}: {reason(error)}") from error
    size = len(batch.prompts)
    if not isinstance(scores, torch.Tensor) or scores.shape != (size,):
        found = list(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise RewardCallError(f"reward {reward.name!r} must return one score per sample, [{size}], got {found}")
    if not scores.is_floating_point():
        raise RewardCallError(
            f"reward {reward.name!r} must return floating-point numbers, got {scores.dtype}; end with .float()"
        )
    return scores.float().cpu()


def score_in_parts(reward: Reward, size: int, take: Callable[[range], RewardInput]) -> torch.Tensor:
    """The scores [size] float32 of samples, on the CPU, `reward.batch_size` of them in one call.

    `take` gives the samples of some rows when their turn comes, so that no more than a call's are in memory; of a whole
    batch, it is `batch.take`. Raises what `call_reward` raises.
    """
    rows = range(size)
    step = reward.batch_size
    return torch.cat([call_reward(reward, take(rows[start : start + step])) for start in range(0, size, step)])


def reason(error: BaseException) -> str:
    """What an error of a reward comes to, in one line.

    A UserError has the words to show already; a ValueError is how a reward says that the batch is none for it; anything
    else is a defect, and its type says as much as its words.
    """
    if isinstance(error, UserError):
        return _one_line(error)
    if isinstance(error, ValueError):
        return f"refuses its batch{_after_colon(error)}"
    return f"{type(error).__name__}{_after_colon(error)}"


def shapes_of(batch: RewardInput) -> str:
    """The tensors that a batch holds, for messages: "pixels [4, 3, 64, 64]"."""
    tensors = {"latents": batch.latents, "pixels": batch.pixels}
    if batch.condition is not None:
        tensors |= {"embeds": batch.condition.embeds, "pooled": batch.condition.pooled}
    found = [f"{name} {list(tensor.shape)}" for name, tensor in tensors.items() if tensor is not None]
    return ", ".join(found) or "nothing but prompts"


def _called(reward: Reward, batch: RewardInput) -> str:
    kind = type(reward)
    return f"reward {reward.name!r} ({kind.__module__}:{kind.__qualname__}) fails on a batch of {shapes_of(batch)}"


def _after_colon(error: BaseException) -> str:
    """ ": " and an error's words, or nothing where it has none, as a bare MemoryError."""
    words = _one_line(error)
    return f": {words}" if words else ""


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
