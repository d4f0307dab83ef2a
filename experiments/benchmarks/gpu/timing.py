"""Times a call and reads how much memory it took."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import torch

from experiments.benchmarks.gpu.record import Case
from experiments.benchmarks.gpu.setting import Setting
from flowrl.plan.meter import Meter

Call = Callable[[], object]


def measure(
    name: str,
    call: Call,
    setting: Setting,
    *,
    images: int = 0,
    first: Call | None = None,
    times_first: int = 1,
    flops: int | None = None,
    repeats: int | None = None,
) -> Case:
    """The case of a call: run once to warm up and to count its FLOPs, then `repeats` times against the clock.

    `first` warms up in its place, and the FLOPs of the call are then `times_first` as many; with `flops` they are not
    counted. Repeats end early when the time is over. Too little memory is an outcome, as is too little time.
    """
    if setting.is_late:
        return Case(name=name, outcome="skipped", reason="the time of its part was over")
    free()
    try:
        counted = _warm_up(first or call, flops)
        return _timed(name, call, setting, images, counted * times_first, repeats or setting.sizes.repeats)
    except torch.OutOfMemoryError as error:
        reason = str(error).partition(". ")[0]
    free()  # here, as the error kept what the call had made
    return Case(name=name, outcome="out of memory", reason=reason)


def _warm_up(call: Call, flops: int | None) -> int:
    if flops is not None:
        call()
        return flops
    meter = Meter()
    with meter.stretch() as work:
        call()
    return work.flops


def _timed(name: str, call: Call, setting: Setting, images: int, flops: int, repeats: int) -> Case:
    on_gpu = setting.device.type == "cuda"
    wait(setting)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds: list[float] = []
    while len(seconds) < repeats and not (seconds and setting.is_late):
        began = time.perf_counter()
        call()
        wait(setting)
        seconds.append(time.perf_counter() - began)
    return Case(
        name=name,
        images=images,
        seconds=tuple(seconds),
        flops=flops,
        allocated=torch.cuda.max_memory_allocated() if on_gpu else None,
        reserved=torch.cuda.max_memory_reserved() if on_gpu else None,
    )


def wait(setting: Setting) -> None:
    """Wait until the device has done all that it was given."""
    if setting.device.type == "cuda":
        torch.cuda.synchronize()


def free() -> None:
    """Give back the memory of tensors that nothing refers to, and what the allocator keeps of it."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
