"""Runs `flowrl ...` under DeepSpeed on the CPU: python tests/deepspeed_on_cpu.py reward train CONFIG."""

from __future__ import annotations

import sys

import torch
from accelerate import PartialState


def join() -> None:
    """Make accelerate see the processes of a DeepSpeed launch on the CPU, where it takes each for the only one."""
    import deepspeed.ops

    # Else DeepSpeed compiles a kernel for shared memory at start; gloo alone serves as well.
    deepspeed.ops.__dict__["__compatible_ops__"] = {}
    processes = PartialState()
    processes.num_processes = torch.distributed.get_world_size()
    processes.process_index = processes.local_process_index = torch.distributed.get_rank()


if __name__ == "__main__":
    from flowrl.cli import main

    join()
    sys.exit(main())
