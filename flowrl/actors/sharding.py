"""ZeRO-3 by DeepSpeed: one reward network spread over the ranks of a scorer gang."""

from __future__ import annotations

import os
import warnings
from datetime import timedelta

import torch

# Parameters below this many elements stay on every rank: gathering a bias costs more than keeping it.
_PERSISTENT_BELOW = 4096


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


def shard(module: torch.nn.Module) -> torch.nn.Module:
    """The module with its weights partitioned over the gang and gathered layer by layer in each forward.

    Every rank must hold the same weights before, and must call forward the same number of times after: each call is
    a sequence of collectives. Scores equal those of the unsharded module.
    """
    import deepspeed

    module.requires_grad_(False)
    dtype = next(module.parameters()).dtype
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        engine, *_ = deepspeed.initialize(
            model=module,
            config={
                "train_micro_batch_size_per_gpu": 1,
                "bf16": {"enabled": dtype == torch.bfloat16},
                "fp16": {"enabled": dtype == torch.float16},
                "zero_optimization": {
                    "stage": 3,
                    "stage3_param_persistence_threshold": _PERSISTENT_BELOW,
                    # Else torch's linear is replaced in the whole process by one that adds the bias apart, and rounds
                    # differently; it saves memory in a backward pass, of which there is none.
                    "memory_efficient_linear": False,
                },
            },
        )
    engine.eval()
    return engine


def local_elements(module: torch.nn.Module) -> int:
    """How many weights this rank holds of a sharded module; what the others hold counts for nothing."""
    total = 0
    for parameter in module.parameters():
        partition = parameter.ds_tensor if hasattr(parameter, "ds_tensor") else parameter
        total += partition.numel()
    return total
