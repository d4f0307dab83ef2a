"""Wires a configuration into actors and a trainer, runs it, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from flowrl.actors.encoder import Encoder
from flowrl.actors.fused import Fused
from flowrl.actors.group import RayRuntime
from flowrl.actors.learner import Learner
from flowrl.actors.roles import (
    Actors,
    Encoders,
    Learners,
    Rollouts,
    Scorers,
)
from flowrl.actors.rollout import Rollout
from flowrl.actors.runtime import ActorGroup, LocalRuntime, Runtime
from flowrl.actors.scorer import Scorer
from flowrl.actors.turns import Turns
from flowrl.base import checkpoint
from flowrl.base.devices import pick_device
from flowrl.base.embedded import POCKET, folder_of
from flowrl.base.signals import StopRequest, stop_at_once
from flowrl.config import ConfigError, RunConfig, diff, dump, load
from flowrl.console import Console
from flowrl.data import PromptOrder, read_prompts
from flowrl.evaluate import Evaluator
from flowrl.fetch.needs import needs
from flowrl.metrics import run_log
from flowrl.model_spec import ModelSpec
from flowrl.models.image_sizes import latent_deviations
from flowrl.pocket.prompt_sets import prompt_file
from flowrl.protocols import Algorithm
from flowrl.registry import resolve
from flowrl.report.run_report import write_report
from flowrl.reward_loading import LatentSource, check_rewards
from flowrl.run_dir import RunDir, begin, claim, release
from flowrl.seating import seating
from flowrl.trainer import Trainer
from flowrl.types import Prompt

# Keys that shape no number of a step.
_MAY_CHANGE = (
    *("run.steps", "run.dir", "run.name", "run.overwrite", "eval.every", "checkpoint.every", "checkpoint.keep"),
    *("placement.mode", "placement.num_rollouts", "placement.num_scorers", "placement.shard_scorer"),
    "placement.num_learners",  # as long as the number at work is the same
    *("placement.ray_address", "placement.timeout_s"),
    "placement.offload",
    "data.condition_cache",
    "data.encode_ahead",
    "model.gradient_checkpointing",
)


def run_training(config: RunConfig, resume: bool = False) -> int:
    """Train as configured, from the newest checkpoint of `run.dir` with `resume`; returns the process exit code."""
    return _run(config, resume=resume, adapter=None)


def run_evaluation(config: RunConfig, adapter: Path | None) -> int:
    """Evaluate an exported adapter, or the base model, as a run of no steps; returns the process exit code."""
    return _run(config, resume=False, adapter=adapter)


def _run(config: RunConfig, *, resume: bool, adapter: Path | None) -> int:
    _check_files(config)
    model = model_spec(config)
    train = read_prompts(_prompt_path(config.data.train_prompts, "train"), "data.train_prompts")
    held_out = read_prompts(_prompt_path(config.data.eval_prompts, "eval"), "data.eval_prompts")
    prompts = PromptOrder(train, per_step=config.rollout.prompts_per_step, seed=config.run.seed)
    if config.eval.num_prompts > len(held_out):
        raise ConfigError(
            f"eval.num_prompts must be at most the number of held-out prompts = {len(held_out)}, "
            f"got {config.eval.num_prompts}"
        )
    if resume:
        _check_resumable(config)
    placement = config.placement
    if placement.mode == "local" or placement.ray_address == "local":  # the actors will be on this machine
        pick_device(placement.device, key="placement.device")
    source = LatentSource.of_policy(
        model.family, model.path, model.section.max_sequence_length, key="model.max_sequence_length"
    )
    trained = check_rewards([*config.rewards.train, *config.rewards.watch], [source], model.device)
    notes = latent_deviations([(config.model.image_size,) * 2], trained)
    folder = claim(config, resume=resume)
    try:
        with stop_at_once(), Console(config) as console:
            for note in notes:
                console.note(note)
            _train(config, model, prompts, held_out, folder, console, notes, resume=resume, adapter=adapter)
            console.close(write_report(folder.path))
    finally:
        release(folder)
    return 0


def _train(
    config: RunConfig,
    model: ModelSpec,
    prompts: PromptOrder,
    held_out: list[Prompt],
    folder: RunDir,
    console: Console,
    notes: list[str],
    *,
    resume: bool,
    adapter: Path | None,
) -> None:
    start_from = _newest_checkpoint(folder, console) if resume else None
    console.phase("starting actors")
    with StopRequest() as starting:  # what is half started cannot be closed
        runtime = start_runtime(config)
    try:
        starting.obey()
        actors = start_actors(config, model, runtime)
        if adapter is not None:
            actors.learners.load_adapter(adapter)
            actors.sync()
        begin(folder, config, resume=resume)
        if not actors.learners.see(folder.path.resolve() / "config.yaml"):
            raise ConfigError(f"run.dir: {folder.path} is not on a disk that all nodes share; learners save there")
        algorithm: Algorithm = resolve("algorithm", config.algorithm.name)[0](config.algorithm, config.run.seed)
        resumed_step = None
        if resume:  # without a checkpoint nothing that was logged counts
            resumed_step = -1 if start_from is None else checkpoint.step_of(start_from)
        with run_log(folder.path, resumed_step=resumed_step) as log:
            if not resume:
                log.text("config", 0, f"```\n{dump(config)}```")
                if notes:
                    log.text("notes", 0, "\n\n".join(notes))
            trainer = Trainer(
                config=config,
                algorithm=algorithm,
                prompts=prompts,
                actors=actors,
                evaluator=Evaluator(config.eval, held_out),
                log=log,
                console=console,
                folder=folder,
            )
            trainer.fit(start_from)
    finally:
        runtime.close()


def _check_files(config: RunConfig) -> None:
    """Raise ConfigError, which names all of them, when files that the configuration names are not there at all."""
    absent = [need for need in needs(config) if not need.path.exists()]
    if not absent:
        return
    lines = [f"{need.key}: {need.path} is not there" + (f"; {need.advice}" if need.advice else "") for need in absent]
    if any(need.bundle is not None for need in absent):
        lines.append("flowrl fetch CONFIG downloads what is public, and says how to get what is gated")
    raise ConfigError("\n  ".join(lines))


def _check_resumable(config: RunConfig) -> None:
    """Raise ConfigError when a resumed run would go on with other numbers than it began with."""
    path = Path(config.run.dir) / "config.yaml"
    if not path.is_file():
        return  # which the making of the run's folder says better
    begun = load(path)
    before, now = begun.placement.learners, config.placement.learners
    if before != now:
        raise ConfigError(
            f"{path}: a resumed run keeps its number of learners, {before}, because another sums in another order, got "
            f"{now}; set placement.num_learners, or placement.mode (local has one)"
        )
    changed = sorted(key for key in diff(begun, config) if key not in _MAY_CHANGE)
    if changed:
        raise ConfigError(
            f"{path}: a resumed run goes on as it began, but these keys differ: {', '.join(changed)}; drop the "
            f"overrides, or start a new run. What may change: {', '.join(_MAY_CHANGE)}"
        )


def model_spec(config: RunConfig) -> ModelSpec:
    """Which model the actors load; raises UserError, naming the key, when its folder is not one or a package lacks."""
    path = folder_of(config.model.path, "sd35")
    spec = ModelSpec(
        section=config.model,
        path=path,
        seed=config.run.seed,
        device=config.placement.device,
        threads=config.placement.threads,
    )
    spec.check()
    return spec


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


def start_actors(config: RunConfig, model: ModelSpec, runtime: Runtime) -> Actors:
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
    return Actors(
        runtime=runtime,
        encoder=Encoders(runtime, encoder, turns if config.data.encode_ahead else Turns(runtime)),
        rollouts=Rollouts(runtime, rollouts, turns),
        scorers=Scorers(runtime, scorers, turns, lockstep=sharded),
        learners=Learners(runtime, learners, turns),
    )


def _prompt_path(value: str, part: str) -> Path:
    return prompt_file(part) if value == POCKET else Path(value)


def _newest_checkpoint(folder: RunDir, console: Console) -> Path | None:
    found, problems = checkpoint.newest(folder.checkpoints)
    for problem in problems:
        console.note(f"checkpoint passed over: {problem}")
    if found is None and problems:
        raise ConfigError(
            f"{folder.checkpoints}: no checkpoint can be used: {'; '.join(problems)}. Put a whole one there, or start "
            "anew with run.overwrite=true"
        )
    if found is None:
        console.note(f"no checkpoint in {folder.checkpoints}: starting from the beginning")
    return found
