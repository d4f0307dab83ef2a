"""What a learner asks of the way in which its ranks share the work, and the choice of one."""

from __future__ import annotations

from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, Protocol

import torch
from accelerate import PartialState
from torch import distributed

from flowrl.actors.sharding import check_buffers, join_gang
from flowrl.actors.strategies.ddp import DDP
from flowrl.actors.strategies.fsdp2 import FSDP2
from flowrl.actors.strategies.zero import Zero2, Zero3
from flowrl.config import LearnerStrategy, OptimSection
from flowrl.protocols import Policy


class Strategy(Protocol):
    """AdamW on the adapter of a policy, by all ranks together; `policy.module` is what they share.

    The adapter, its gradient and its optimizer are float32 whatever the dtype of the frozen weights. Every method but
    `adapter` and `backward` may be a collective, so every rank must call it.
    """

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        """Around the forward and backward pass of one micro-batch, the `last` one before a step or another."""
        ...

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a loss [] to the sum of those since the last step; a step takes its mean over ranks."""
        ...

    def step(self) -> float:
        """Clip the gradient and take an optimizer step; returns the norm before clipping, equal on all ranks.

        When the norm is not finite, no rank takes the step.
        """
        ...

    def forget(self) -> None:
        """Drop the gradients of an attempt that was stopped."""
        ...

    def adapter(self) -> dict[str, torch.Tensor]:
        """The whole adapter by name, as the last step or `whole` left it; float32, not to be changed."""
        ...

    def whole(self) -> AbstractContextManager[None]:
        """Within the context the parameters of `policy.trainable()` are whole on every rank; all may change them alike.

        To train on from changed ones, give their moments to `load_moments`.
        """
        ...

    def moments(self) -> dict[str, Any]:
        """The state of the optimizer, as that of a `torch.optim.AdamW` on the whole adapter, in its order."""
        ...

    def load_moments(self, state: dict[str, Any]) -> None:
        """Continue from what `moments` returned, of this strategy or another, on any number of ranks."""
        ...


def join(strategy: LearnerStrategy, device: str, timeout_s: float) -> None:
    """Meet the other ranks, if the environment tells of any; comes before the model is loaded."""
    if strategy == "ddp":
        PartialState(cpu=device == "cpu", timeout=timedelta(seconds=timeout_s))
    else:
        join_gang(device, timeout_s)


def share(strategy: LearnerStrategy, policy: Policy, optim: OptimSection, device: str) -> Strategy:
    """Share a policy that is equal on every rank that joined; raises CheckpointError where a buffer is not."""
    if distributed.is_initialized():
        check_buffers(policy.module)
    match strategy:
        case "ddp":
            return DDP(policy, optim, device)
        case "fsdp2":
            return FSDP2(policy, optim, device)
        case "zero2":
            return Zero2(policy, optim)
        case "zero3":
            return Zero3(policy, optim, device)


def largest_over_ranks(value: float, device: str) -> float:
    """The largest of the values of all ranks; NaN when one is."""
    mine = torch.tensor([value], device=device)
    if not distributed.is_initialized():
        return mine.item()
    values = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
    distributed.all_gather(values, mine)
    return torch.cat(values).max().item()


def is_first_rank() -> bool:
    """Whether this rank writes the files."""
    return not distributed.is_initialized() or distributed.get_rank() == 0
