"""Counts the FLOPs of operations and the bytes of the tensors that live.

Exact on real tensors and on fake ones, which have shapes and no numbers: so the work of a model of any size is counted
by letting its own code run.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

_ATEN = torch.ops.aten


@dataclass(kw_only=True)
class Work:
    """What was done within a stretch of code."""

    rise: int = 0  # bytes, of the peak above where the stretch began
    flops: int = 0


class Meter(TorchDispatchMode):
    """Within the context every storage that an operation makes is counted until it is freed, and its FLOPs are summed.

    A storage counts once however many views it has. An allocator's rounding and the workspaces of kernels are not in
    `live` and `peak`, which are bytes. FLOPs are those of matrix products, convolutions and attention: a
    multiplication and an addition are two.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self.flops = 0
        self._sizes: dict[int, int] = {}
        self._stretches = 0  # within one another

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one operation and count it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf)
        formula = _FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=result)
        return result

    @contextmanager
    def stretch(self) -> Iterator[Work]:
        """Within the context the meter is on; what was done stands in the result at its end. One may be in another."""
        work = Work()
        before, live, flops = self.peak, self.live, self.flops
        self.peak = live
        self._stretches += 1
        with self if self._stretches == 1 else nullcontext():
            yield work
        self._stretches -= 1
        work.rise, work.flops = self.peak - live, self.flops - flops
        self.peak = max(self.peak, before)

    def repeat(self, work: Work) -> None:
        """Count work that was done before as done again."""
        self.peak = max(self.peak, self.live + work.rise)
        self.flops += work.flops

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


def materialise(module: torch.nn.Module, mode: FakeTensorMode) -> None:
    """Give the parameters and buffers of a module on the meta device fake memory on the CPU, each in its own dtype."""
    with mode:
        for part in module.modules():
            for name, parameter in list(part.named_parameters(recurse=False)):
                fake = torch.empty(parameter.shape, dtype=parameter.dtype)
                part.register_parameter(name, torch.nn.Parameter(fake, requires_grad=parameter.requires_grad))
            for name, buffer in list(part.named_buffers(recurse=False)):
                part.register_buffer(name, torch.empty(buffer.shape, dtype=buffer.dtype))


# Attention on the CPU is missing from torch's table of formulas.
def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout: float = 0.0,
    causal: bool = False,
    *,
    attn_mask: torch.Tensor | None = None,
    scale: float | None = None,
    out_val: Any,
) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


def _attention_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    logsumexp: torch.Tensor,
    dropout: float,
    causal: bool,
    *,
    attn_mask: torch.Tensor | None = None,
    scale: float | None = None,
    out_val: Any,
) -> int:
    return int(sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape))


_FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _attention,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
