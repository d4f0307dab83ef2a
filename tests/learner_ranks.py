"""Runs a gang of learners over several processes on the CPU, each with a rollout of its own, without Ray."""

from __future__ import annotations

import math
import multiprocessing
import os
import socket
import sys
import traceback
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from flowrl.actors.fused import Fused
from flowrl.actors.learner import Learner, TrainingError
from flowrl.actors.rollout import Rollout
from flowrl.config import LearnerStrategy
from flowrl.types import Trajectory
from tests import learners, tiny

GROUPS = 6  # of a step at most, over all ranks: they divide by 1, 2 and 3
_TIME_LIMIT = 120  # seconds
# Imported once, by a process that the ranks are forked from.
_PRELOADED = ["flowrl.actors.fused", "tests.learners", "tests.tiny", "deepspeed", "torch.distributed.fsdp"]


@dataclass(frozen=True, kw_only=True)
class Gang:
    """What ranks do together: load a state, train some steps, save the state."""

    folder: Path  # the Stable Diffusion 3 folder
    out: Path  # where each rank leaves what it found
    strategy: LearnerStrategy
    world: int
    steps: int = 2
    groups: int = GROUPS
    load: Path | None = None
    save: Path | None = None
    options: dict[str, float] = field(default_factory=dict)  # of the optimizer and the algorithm
    dtype: str = "float32"
    checkpointing: bool = False
    fused: bool = False  # the learners sample as well, and are left with their average after each step
    other_folder: Path | None = None  # of the last rank
    stumbles: bool = False  # before the last step are attempts with bad numbers on the last rank

    def run(self) -> list[Found]:
        """What each rank found; fails with what was said when a rank did not end well."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        self.out.mkdir(parents=True, exist_ok=True)
        port = _free_port()
        ranks = [context.Process(target=_run_rank, args=(self, rank, port)) for rank in range(self.world)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(_TIME_LIMIT)
        for process in ranks:
            process.kill()
            process.join()
        said = "\n".join(path.read_text(encoding="utf-8") for path in sorted(self.out.glob("*.log")))
        assert [process.exitcode for process in ranks] == [0] * self.world, said
        return [torch.load(self.out / f"{rank}.pt", weights_only=False) for rank in range(self.world)]


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a rank knows at the end."""

    start: torch.Tensor  # the adapter before the first step, flat
    weights: torch.Tensor
    ema: torch.Tensor
    norms: list[float]  # of the gradient, by step
    deviation: float  # of the ratio from 1, the largest
    errors: list[str]  # of the attempts before the last step
    dtypes: list[torch.dtype]  # of the adapter's parameters
    held: int  # elements of the weights that this rank holds, frozen or not
    buffers: float  # the sum of those of the model


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _run_rank(gang: Gang, rank: int, port: int) -> None:
    log = os.open(gang.out / f"{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ |= {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": "0"}
    if gang.world > 1 or gang.strategy != "ddp":
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(gang.world)}
    from flowrl.actors import sharding

    sharding._PERSISTENT_BELOW = 512  # else nothing of a tiny model would be spread; this keeps biases and the adapter
    code = 1
    try:
        torch.save(train(gang, rank), gang.out / f"{rank}.pt")
        code = 0
    finally:
        if code:
            traceback.print_exc()
            sys.stderr.flush()
        os._exit(code)  # without waiting for the others, who may wait for this one


def train(gang: Gang, rank: int) -> Found:
    """What one rank does; of a gang of one with DDP this process can do it too."""
    last = rank == gang.world - 1
    spec = tiny.model_spec(gang.other_folder if gang.other_folder is not None and last else gang.folder)
    section = replace(spec.section, dtype=gang.dtype, gradient_checkpointing=gang.checkpointing)
    spec = replace(spec, section=section)
    algorithm, optim = learners.sections(**gang.options)
    trained: Learner | Fused
    if gang.fused:
        trained = Fused(spec, algorithm, optim, learners.LOOSE, 0, strategy=gang.strategy)
    else:
        trained = Learner(spec, algorithm, optim, learners.LOOSE, 0, strategy=gang.strategy)
    rollout = trained if isinstance(trained, Fused) else Rollout(spec, 0)
    if gang.load is not None:
        trained.load(str(gang.load))
    start, begun = learners.weights(trained), trained.weights(ema=False).version  # one step of the optimizer in each
    norms, deviation, errors = [], 0.0, []
    for step in range(begun + 1, begun + gang.steps + 1):
        behaviour = trained.weights(ema=False)
        rollout.load_weights(behaviour)
        mine = range(rank, gang.groups, gang.world)
        negative = tiny.random_condition(9)
        groups = [rollout.generate(tiny.request(i, step), tiny.random_condition(10 + i), negative) for i in mine]
        advantages = [learners.advantages(GROUPS)[prompt] for prompt in mine]
        if gang.stumbles and step == begun + gang.steps:
            errors = _stumble(trained, step, advantages, groups, harm=last)
        result = trained.update(step, advantages, *groups)
        norms += learners.metric(result.metrics, "policy/grad_norm")
        deviation = max(deviation, *learners.metric(result.metrics, "policy/ratio_absdev_max"))
        rollout.load_weights(trained.weights(ema=True))
    if gang.save is not None:
        gang.save.mkdir(exist_ok=True)
        trained.save(str(gang.save))
        trained.export(str(gang.save))
    return Found(
        start=start,
        weights=learners.weights(trained),
        ema=learners.weights(trained, ema=True),
        norms=norms,
        deviation=deviation,
        errors=errors,
        dtypes=[parameter.dtype for _, parameter in trained._policy.trainable()],
        held=sum(_held(parameter) for parameter in trained._policy.module.parameters()),
        buffers=sum(float(buffer.double().sum()) for buffer in trained._policy.module.buffers()),
    )


def _stumble(
    trained: Learner | Fused, step: int, advantages: list[torch.Tensor], groups: list[Trajectory], *, harm: bool
) -> list[str]:
    """Try a step with log-probs, then with advantages, that are wrong on the rank that shall harm; says what it met."""
    path = groups[0].path
    assert path is not None
    errors = []
    bad = replace(groups[0], path=replace(path, log_probs=path.log_probs - 2.0)) if harm else groups[0]
    infinite = torch.full_like(advantages[0], math.inf) if harm else advantages[0]
    for first, group in ((advantages[0], bad), (infinite, groups[0])):
        try:
            trained.update(step, [first, *advantages[1:]], group, *groups[1:])
        except TrainingError as error:
            errors.append(str(error))
    return errors


def _held(parameter: torch.Tensor) -> int:
    if isinstance(parameter, DTensor):
        return parameter.to_local().numel()
    if hasattr(parameter, "ds_tensor"):
        return max(parameter.numel(), parameter.ds_tensor.numel())
    return parameter.numel()
