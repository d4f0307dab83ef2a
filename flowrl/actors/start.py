"""Starts the actors that a configuration asks for, on the runtime that it asks for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from flowrl.actors.encoder import Encoder
from flowrl.actors.fused import Fused
from flowrl.actors.group import RayRuntime
from flowrl.actors.learner import Learner
from flowrl.actors.roles import Encoders, Learners, Rollouts, Scorers
from flowrl.actors.rollout import Rollout
from flowrl.actors.run_actors import RunActors
from flowrl.actors.runtime import ActorGroup, LocalRuntime, Runtime
from flowrl.actors.scorer import Scorer
from flowrl.actors.turns import Turns
from flowrl.config import RunConfig
from flowrl.model_spec import ModelSpec
from flowrl.seating import seating


def start_runtime(config: RunConfig) -> Runtime:
    """Where the actors of this configuration live."""
    placement = config.placement
    if placement.mode == "local":
        return LocalRuntime()
    return RayRuntime(
        address=placement.ray_address,
        threads=placement.threads,
        on_gpus=placement.device == "cuda",
        timeout_s=placement.timeout_s,
    )


def start_actors(config: RunConfig, model: ModelSpec, runtime: Runtime) -> RunActors:
    """Start every role and wait until all are ready; those that have the devices in turn are made in turn."""
    placement, part, seats = config.placement, config.rollout.samples_per_forward, seating(config.placement)
    runtime.reserve(seats.shares)
    turns = Turns(runtime)

    def start(name: str, make: Callable[[], Any], seats: tuple[int, ...], *, gang: bool) -> ActorGroup:
        group = runtime.start(name, make, size=len(seats), gang=gang, devices=seats)
        if placement.offload:
            runtime.ready()
            turns.join(group)
        return group

    encode = partial(Encoder, model=model, cache=config.data.condition_cache, stays=config.data.encode_ahead == 0)
    encoder = runtime.start("encoder", encode, size=1, gang=False, devices=seats.encoder)
    sharded = placement.scorers_are_a_gang
    scorer = partial(
        Scorer,
        model=model,
        train=config.rewards.train,
        watch=config.rewards.watch,
        sharded=sharded,
        timeout_s=placement.timeout_s,
        shows_images=config.eval.grid_prompts > 0,
    )
    scorers = start("scorer", scorer, seats.scorers, gang=sharded)
    learner = partial(
        Fused if placement.learners_sample else Learner,
        model=model,
        algorithm=config.algorithm,
        optim=config.optim,
        gate=config.gate,
        samples_per_forward=part,
        strategy=placement.learner_strategy,
        timeout_s=placement.timeout_s,
    )
    gang = len(seats.learners) > 1 or placement.learner_strategy != "ddp"
    learners = start("learner", learner, seats.learners, gang=gang)
    rollouts = learners
    if not placement.learners_sample:
        rollout = partial(Rollout, model=model, samples_per_forward=part)
        rollouts = start("rollout", rollout, seats.rollouts, gang=False)
    runtime.ready()
    return RunActors(
        runtime=runtime,
        encoder=Encoders(runtime, encoder, turns if config.data.encode_ahead else None),
        rollouts=Rollouts(runtime, rollouts, turns),
        scorers=Scorers(runtime, scorers, turns, lockstep=sharded),
        learners=Learners(runtime, learners, turns),
    )
