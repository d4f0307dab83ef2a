"""ZeRO-3 by DeepSpeed: one network spread over the ranks of a gang."""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from torch import distributed

from flowrl.base.empty_module import EmptyModule
from flowrl.base.errors import CheckpointError

Made = TypeVar("Made")
Weights = Callable[[], Iterable[tuple[str, torch.Tensor]]]  # by name; a function, as one rank alone reads them

# Parameters below this many elements stay on every rank: gathering a bias costs more than keeping it.
_PERSISTENT_BELOW = 4096
_DIGESTED = 64 * 2**20  # bytes at a time


@dataclass(frozen=True, kw_only=True)
class _Word:
    """What the first rank says before each tensor: which it is, that it was the last, or what went wrong."""

    name: str = ""  # empty: no more
    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    fault: str = ""

    def place(self, device: torch.device) -> torch.Tensor:
        """Memory for the tensor."""
        return torch.empty(self.shape, dtype=self.dtype, device=device)


def join_gang(device: str, timeout_s: float) -> None:
    """Join the process group that RANK, WORLD_SIZE and MASTER_ADDR describe, through DeepSpeed."""
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import deepspeed.ops

    if device == "cpu":
        # On the CPU DeepSpeed would compile a shared-memory kernel at start; gloo alone serves as well.
        deepspeed.ops.__dict__["__compatible_ops__"] = {}
    deepspeed.init_distributed(
        dist_backend="nccl" if device == "cuda" else "gloo",
        timeout=timedelta(seconds=timeout_s),
        verbose=False,
    )


def on_all_ranks(make: Callable[[], Made]) -> Made:
    """What `make` gives on this rank; raises on every rank of the gang when it raises a ValueError on one."""
    made, fault = None, None
    try:
        made = make()
    except ValueError as error:
        fault = error
    said: list[str | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(said, None if fault is None else str(fault))
    if fault is not None:
        raise fault
    for rank, other in enumerate(said):
        if other is not None:
            raise CheckpointError(f"{other} (found by rank {rank} of the gang)")
    return cast(Made, made)


def shard(module: torch.nn.Module) -> torch.nn.Module:
    """The module with its weights partitioned over the gang and gathered layer by layer in each forward.

    Every rank must hold the same weights before, and must call forward the same number of times after: each call is
    a sequence of collectives. Scores equal those of the unsharded module. Raises CheckpointError on every rank when a
    buffer differs.
    """
    check_buffers(module)
    return _gathering(module)


def shard_empty(module: torch.nn.Module, read_weights: Weights, device: torch.device) -> torch.nn.Module:
    """The module, built on the meta device, as `shard` makes it of one that holds its weights.

    The first rank alone calls `read_weights`, as `flowrl.reward_protocols.StreamedReward` describes it, and sends each
    tensor to the others; of a parameter every rank keeps its part on `device`, of a buffer the whole. So no rank ever
    holds more than that and a tensor or two. What the first rank raises meanwhile ends all of them.
    """
    partition_empty(module, read_weights, device)
    return _gathering(module)


def partition_empty(module: torch.nn.Module, read_weights: Weights, device: torch.device) -> None:
    """Put weights in a module on the meta device, each parameter as ZeRO-3 partitions over the ranks of the process
    group; as `shard_empty`, but it is left to the caller to give the module to DeepSpeed, to train it for example.
    """
    empty, cut = EmptyModule(module), Cut(device)
    first = distributed.get_rank() == 0
    for word, tensor in _send(read_weights) if first else _receive():
        is_parameter = empty.is_parameter(word.name)
        place = cut.place(word.shape, word.dtype) if is_parameter else word.place(device)
        if tensor is not None:
            place.copy_(tensor)
        owned = empty.put(word.name, place)
        if isinstance(owned, torch.nn.Parameter):
            cut(owned)
        else:
            distributed.broadcast(owned.flatten().view(torch.uint8), src=0)
    empty.check_full()
    for part in module.modules():  # buffers that had values from the start
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, buffer.to(device))
    check_buffers(module)


def check_buffers(module: torch.nn.Module) -> None:
    """Raise CheckpointError on every rank, with the first buffer that differs and where: nothing spreads buffers."""
    mine = {name: _digest(buffer) for name, buffer in module.named_buffers()}
    found: list[dict[str, str]] = [{} for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(found, mine)
    for name in dict.fromkeys(name for digests in found for name in digests):
        wrong = [rank for rank, digests in enumerate(found) if digests.get(name) != found[0].get(name)]
        if wrong:
            ranks = ", ".join(map(str, wrong))
            raise CheckpointError(
                f"the buffer {name} of {type(module).__name__} differs between the ranks of a gang: those of rank "
                f"{ranks} are not that of rank 0; give all of them the same files and versions of the libraries"
            )


def _digest(tensor: torch.Tensor) -> str:
    """A digest of a tensor's bytes and kind, taken a part at a time: a table of positions may be large."""
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    for part in tensor.detach().contiguous().flatten().view(torch.uint8).split(_DIGESTED):
        digest.update(part.cpu().numpy())
    return digest.hexdigest()


class Cut:
    """Has every rank keep its part alone of one parameter after the other, on a device, as ZeRO-3 does.

    A parameter is whole in one place, the same for all of them: in memory that is allocated for each anew, the parts
    would leave gaps between them, a third of the whole in all. `config` is DeepSpeed's for the module.
    """

    def __init__(self, device: torch.device, config: dict[str, Any] | None = None) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8, device=device)
        self._config = config
        self._convert: Callable[[list[torch.nn.Parameter]], None] | None = None

    def place(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Where the next parameter belongs; it holds whatever was there before."""
        size = math.prod(shape) * dtype.itemsize
        if size > len(self._bytes):
            self._bytes = torch.empty(size, dtype=torch.uint8, device=self._bytes.device)
        return self._bytes[:size].view(dtype).view(shape)

    def __call__(self, parameter: torch.nn.Parameter) -> None:
        """Cut a parameter whose data is in its place; DeepSpeed first sends what the first rank has there to all."""
        import deepspeed

        if self._convert is None:
            config = self._config or _config(parameter.dtype)
            deepspeed.zero.Init(module=torch.nn.ParameterList([parameter]), config_dict_or_path=config)
            self._convert = parameter.convert_to_zero_parameters  # type: ignore[attr-defined]  # added by DeepSpeed
        else:
            self._convert([parameter])


def _send(read_weights: Weights) -> Iterator[tuple[_Word, torch.Tensor | None]]:
    """On the first rank: its tensors, each announced to the others, as is an error that ends them."""
    try:
        for name, tensor in read_weights():
            word = _Word(name=name, shape=tuple(tensor.shape), dtype=tensor.dtype)
            _say(word)
            yield word, tensor
    except Exception as error:
        _say(_Word(fault=str(error) or type(error).__name__))
        raise
    _say(_Word())


def _receive() -> Iterator[tuple[_Word, torch.Tensor | None]]:
    """On the other ranks: what is announced; raises CheckpointError for an error."""
    while (word := _say(None)).name:
        yield word, None
    if word.fault:
        raise CheckpointError(f"{word.fault} (found by rank 0 of the gang)")


def _say(word: _Word | None) -> _Word:
    """The word of the first rank, on every rank; the others have none."""
    words = [word]
    distributed.broadcast_object_list(words, src=0)
    return cast(_Word, words[0])


def _gathering(module: torch.nn.Module) -> torch.nn.Module:
    """The module as one that partitions its weights, unless they are, and gathers them in each forward."""
    import deepspeed

    module.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        engine, *_ = deepspeed.initialize(model=module, config=_config(next(module.parameters()).dtype))
    engine.eval()
    return engine


def stage3_settings() -> dict[str, Any]:
    """What DeepSpeed's zero_optimization is wherever weights are spread, in scoring and in training."""
    return {
        "stage": 3,
        "stage3_param_persistence_threshold": _PERSISTENT_BELOW,
        # Else torch's linear is replaced in the whole process by one that adds the bias apart, and rounds differently
        # from that of the rollouts. Torch's own keeps each gathered weight from the forward to the backward pass,
        # unless activations are checkpointed.
        "memory_efficient_linear": False,
    }


def _config(dtype: torch.dtype) -> dict[str, Any]:
    """DeepSpeed's settings for a module of this dtype that only computes forwards."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16},
        "zero_optimization": stage3_settings(),
    }
