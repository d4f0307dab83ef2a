"""Blocks that are alike are computed once: the others repeat what the first was seen to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves, tree_map

from flowrl.plan.meter import Meter, Work


@dataclass(frozen=True)
class _Outline:
    """What is kept of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@contextmanager
def repeat_blocks(network: torch.nn.Module, meter: Meter) -> Iterator[None]:
    """Within the context the blocks in a network's ModuleLists compute for the first of each kind and input alone.

    For forward passes without gradients on fake tensors, while `meter` is on: a block that has been seen
    gives tensors of the same shapes, in memory of their own, and counts what it counted before.
    """
    seen: dict[object, tuple[Any, Work]] = {}
    patched = []
    for stack in [part for part in network.modules() if isinstance(part, torch.nn.ModuleList)]:
        for block in stack:
            if "forward" not in vars(block):
                hook = block.register_forward_pre_hook(_as_two, with_kwargs=True)
                vars(block)["forward"] = _repeating(block, block.forward, meter, seen)
                patched.append((block, hook))
    try:
        yield
    finally:
        for block, hook in patched:
            hook.remove()
            del vars(block)["forward"]


def _as_two(
    block: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Whatever a block is called with as two arguments."""
    return (args, kwargs), {}


def _repeating(
    block: torch.nn.Module,
    forward: Callable[..., Any],
    meter: Meter,
    seen: dict[object, tuple[Any, Work]],
) -> Callable[..., Any]:
    kind = type(block), tuple((name, _outline(value)) for name, value in block.state_dict().items())

    def run(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        key = kind, tuple(map(_outline, tree_leaves((args, kwargs))))
        if key not in seen:
            with meter.stretch() as work:
                result = forward(*args, **kwargs)
            seen[key] = tree_map(_outline, result), work
            return result
        outlines, work = seen[key]
        meter.repeat(work)
        source = next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, FakeTensor))
        return tree_map(partial(_tensor, source), outlines)

    return run


def _outline(leaf: Any) -> Any:
    """The outline of a tensor; of anything else what can be compared."""
    if isinstance(leaf, torch.Tensor):
        return _Outline(tuple(leaf.shape), leaf.dtype)
    return leaf if isinstance(leaf, bool | int | float | str | None) else type(leaf)


def _tensor(source: torch.Tensor, leaf: Any) -> Any:
    """A tensor of an outline, made of another as the meter sees it."""
    return source.new_empty(leaf.shape, dtype=leaf.dtype) if isinstance(leaf, _Outline) else leaf
