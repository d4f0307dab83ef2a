"""Runs work on several processes that can form one process group on the CPU, and measures the memory they hold."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

Work = Callable[[int], Any]  # the rank to a result that can be pickled
_TIME_LIMIT = 100  # seconds
_PRELOADED = ["flowrl.actors.scorer", "flowrl.actors.sharding", "rewards.dit_reward", "rewards.hpsv3", "deepspeed"]


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The most memory that processes held together beside what they held before, in bytes."""

    # Each page counted once, however many of them have it: that of their own, and pages of files they have mapped. The
    # system may drop the latter at any time, and reads them again from the file.
    together: int
    anonymous: int  # of their own alone


def run(world: int, work: Work) -> list[Any]:
    """What `work` gives on each rank, or the exception that it raises; ends all when one does not end in time."""
    with _ranks(world, _work, work) as connections:
        return [_answer(connection) for connection in connections]


def measure(world: int, rehearse: Work, work: Work) -> Peak:
    """How much memory `work` needs on all ranks, from when they did `rehearse` until all have its result."""
    with _ranks(world, _work_measured, rehearse, work) as connections:
        processes = [_answer(connection) for connection in connections]
        before = _held(processes)
        for connection in connections:
            connection.send("go")
        waiting, together, anonymous = set(connections), 0, 0
        while waiting:
            held = _held(processes)
            together, anonymous = max(together, held.together), max(anonymous, held.anonymous)
            for connection in wait(list(waiting), timeout=0.005):
                error = connection.recv()  # type: ignore[union-attr]
                if error is not None:
                    raise error
                waiting.remove(connection)  # type: ignore[arg-type]
        held = _held(processes)
        together, anonymous = max(together, held.together), max(anonymous, held.anonymous)
    return Peak(together=together - before.together, anonymous=anonymous - before.anonymous)


@contextmanager
def _ranks(world: int, main: Callable[..., None], *args: Any) -> Any:
    """Processes that run `main`, by their ends of a pipe; killed in the end."""
    # From a process without threads: a fork of the tests' own process may wait for ever.
    context = get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
    pipes = [context.Pipe() for _ in range(world)]
    processes = [
        context.Process(target=main, args=(theirs, rank, world, port, *args)) for rank, (_, theirs) in enumerate(pipes)
    ]
    for process, (_, theirs) in zip(processes, pipes, strict=True):
        process.start()
        theirs.close()  # so that the end of a process is the end of its pipe
    try:
        yield [ours for ours, _ in pipes]
    finally:
        for process in processes:
            process.kill()
            process.join()


def _answer(connection: Connection) -> Any:
    assert connection.poll(_TIME_LIMIT), "a rank hangs"
    return connection.recv()


def _prepare(rank: int, world: int, port: int) -> None:
    os.environ |= {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(world)}
    os.environ |= {"DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo", "TORCHDYNAMO_DISABLE": "1"}
    import torch

    torch.set_num_threads(1)


def _work(pipe: Connection, rank: int, world: int, port: int, work: Work) -> None:
    _prepare(rank, world, port)
    try:
        pipe.send(work(rank))
    except Exception as error:  # noqa: BLE001 - the test looks at it
        pipe.send(error)
    pipe.poll(None)  # until killed: one that ends closes the others' connections


def _work_measured(pipe: Connection, rank: int, world: int, port: int, rehearse: Work, work: Work) -> None:
    _prepare(rank, world, port)
    rehearse(rank)
    pipe.send(os.getpid())
    pipe.recv()
    try:
        held = work(rank)
    except Exception as error:  # noqa: BLE001 - raised again by the test
        pipe.send(error)
    else:
        pipe.send(None)
        time.sleep(_TIME_LIMIT)
        del held


def _held(processes: list[int]) -> Peak:
    """What processes hold now, all at the same moment: else a page that moves between them is counted twice."""
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    found = [Path(f"/proc/{process}/smaps_rollup").read_text() for process in processes]
    for process in processes:
        os.kill(process, signal.SIGCONT)
    return Peak(
        together=sum(_kib(text, "Pss") for text in found), anonymous=sum(_kib(text, "Pss_Anon") for text in found)
    )


def _kib(rollup: str, key: str) -> int:
    match = re.search(rf"^{key}:\s+(\d+) kB", rollup, re.MULTILINE)
    assert match, rollup
    return int(match[1]) * 1024
