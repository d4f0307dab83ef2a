"""FSDP2: the frozen model cut over the ranks, each block gathered while it is computed; the adapter as with DDP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import ModuleList

from flowrl.actors.strategies.whole_adapter import WholeAdapter
from flowrl.config import OptimSection
from flowrl.protocols import Policy


class FSDP2(WholeAdapter):
    """By torch itself: accelerate cannot be told to leave single parameters of a module whole.

    They are left whole because they are few (of SD3.5-Large at rank 32 with gradient and moments 0.8 GB, beside 16 GB
    of frozen weights) and float32 where the others may be bfloat16. Buffers are whole on every rank.
    """

    def __init__(self, policy: Policy, optim: OptimSection, device: str) -> None:
        super().__init__(policy, optim)
        self._parameters = list(self._named.values())
        for parameter in self._parameters:
            parameter.data = parameter.data.to(device)  # the others get there by being cut
        mesh = init_device_mesh(device, (distributed.get_world_size(),))
        stacks = [child for child in policy.module.children() if isinstance(child, ModuleList)]
        for part in [*(block for stack in stacks for block in stack), policy.module]:
            fully_shard(part, mesh=mesh, ignored_params=set(self._parameters))

    @contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        """Gradients of the adapter are exchanged after the last one, all at once."""
        yield
        if last:
            gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
            mean = torch.cat([gradient.flatten() for gradient in gradients])
            distributed.all_reduce(mean)
            mean /= distributed.get_world_size()
            for gradient, part in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a loss."""
        loss.backward()
