"""DDP: the whole model on every rank, and gradients that are averaged."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from flowrl.actors.strategies.whole_adapter import WholeAdapter
from flowrl.config import OptimSection
from flowrl.protocols import Policy


class DDP(WholeAdapter):
    """By accelerate; of a rank alone it is plain training."""

    def __init__(self, policy: Policy, optim: OptimSection, device: str) -> None:
        super().__init__(policy, optim)
        self._accelerator = Accelerator(
            cpu=device == "cpu",
            mixed_precision="no",  # whatever the environment of the launch says: the dtype is model.dtype's
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
        )
        policy.module = self._module = self._accelerator.prepare_model(policy.module)

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        """Gradients are exchanged in the backward pass of the last one."""
        found: AbstractContextManager[None] = nullcontext() if last else self._accelerator.no_sync(self._module)
        return found

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a loss."""
        self._accelerator.backward(loss)
