"""Runs `flowrl ...` over several processes on the CPU, as `accelerate launch` would, but without its start-up time."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

Kind = Literal["alone", "ddp", "zero2", "zero3"]
_TIME_LIMIT = 120  # seconds
# Imported once, by a process that the ranks are forked from.
_PRELOADED = ["flowrl.cli", "rewards.training.run", "rewards.training.loop", "tests.deepspeed_on_cpu", "deepspeed"]


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Processes that run one command together."""

    kind: Kind  # alone: without a word to accelerate about how the processes meet
    world: int
    words: tuple[str, ...]
    logs: Path  # a folder
    stop_in: int = -1  # the last rank gets a SIGTERM in this step

    def run(self) -> list[int]:
        """The exit codes by rank; ends all when one does not end in time."""
        context = _context()
        self.logs.mkdir(parents=True, exist_ok=True)
        port = _free_port()
        ranks = [context.Process(target=_run_rank, args=(self, rank, port)) for rank in range(self.world)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(_TIME_LIMIT)
        for process in ranks:
            process.kill()
            process.join()
        return [int(process.exitcode or 0) for process in ranks]

    def said(self) -> str:
        """What all ranks wrote to the terminal."""
        return "\n".join(path.read_text(encoding="utf-8") for path in sorted(self.logs.glob("*.log")))


def start(words: list[str], log: Path) -> BaseProcess:
    """Start one command in a process of its own, which may be killed; what it prints is added to a file."""
    process = _context().Process(target=_run_command, args=(words, log))
    process.start()
    return process


def _context() -> multiprocessing.context.ForkServerContext:
    """Processes that come from one without threads: a fork of the tests' own process may wait for ever."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def _run_command(words: list[str], log: Path) -> None:
    _print_to(log, os.O_APPEND)
    import torch

    from flowrl.cli import main

    torch.set_num_threads(1)
    sys.exit(main(words))


def _print_to(log: Path, flag: int) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | flag)
    os.dup2(file, 1)
    os.dup2(file, 2)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _zero(stage: int) -> dict[str, object]:
    """A DeepSpeed configuration; at stage 3 even the smallest weights are spread, as tiny ones else never are."""
    small = {"stage3_param_persistence_threshold": 0} if stage == 3 else {}
    return {"train_batch_size": "auto", "zero_optimization": {"stage": stage, **small}}


def _run_rank(launch: Launch, rank: int, port: int) -> None:
    _print_to(launch.logs / f"{rank}.log", os.O_TRUNC)
    os.environ |= {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(launch.world)}
    if launch.kind == "ddp":
        os.environ |= {"ACCELERATE_USE_CPU": "true"}
    elif launch.kind != "alone":
        settings = launch.logs / f"{rank}.json"
        settings.write_text(json.dumps(_zero(int(launch.kind.removeprefix("zero")))), encoding="utf-8")
        os.environ |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(settings)}
        # DeepSpeed imports an optimizer that is compiled on import, which takes longer than a tiny training.
        os.environ |= {"DS_ACCELERATOR": "cpu", "TORCHDYNAMO_DISABLE": "1"}
    import torch

    from flowrl.cli import main
    from tests.deepspeed_on_cpu import join

    torch.set_num_threads(1)
    if launch.kind in ("zero2", "zero3"):
        join()
    if launch.stop_in >= 0 and rank == launch.world - 1:
        _stop_in(launch.stop_in)
    sys.exit(main(list(launch.words)))


def _stop_in(number: int) -> None:
    """Have this process get a SIGTERM in one step of a reward training."""
    from rewards.training.loop import RewardTrainer

    take_step = RewardTrainer.take_step

    def interrupted(self: RewardTrainer, step: int) -> dict[str, float]:
        if step == number:
            signal.raise_signal(signal.SIGTERM)
        return take_step(self, step)

    RewardTrainer.take_step = interrupted  # type: ignore[method-assign]
