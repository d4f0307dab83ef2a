"""Wires a configuration into actors and a trainer, runs it, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

from flowrl.actors.start import start_actors, start_runtime
from flowrl.base import checkpoint
from flowrl.base.signals import StopRequest, stop_at_once
from flowrl.config import ConfigError, RunConfig, diff, dump, load
from flowrl.console import Console
from flowrl.evaluate import Evaluator
from flowrl.evaluation_identity import evaluation_identity
from flowrl.metrics import run_log
from flowrl.model_spec import ModelSpec
from flowrl.models.adapter_size import num_adapter_parameters
from flowrl.partial_evaluation import PartialEvaluation
from flowrl.preflight import RunInputs, run_inputs
from flowrl.protocols import Algorithm
from flowrl.registry import resolve
from flowrl.report.run_report import write_report
from flowrl.run_dir import RunDir, begin, claim, release
from flowrl.trainer import Trainer

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
    return _run(config, resume=resume, weights=None)


def run_evaluation(config: RunConfig, weights: Path | None) -> int:
    """Evaluate a checkpoint, an exported adapter, or without `weights` the base model, as a run of no steps.

    Of a checkpoint eval.weights says whether the policy or its moving average. Where it was stopped, it goes on when it
    is called with the same again. Returns the process exit code.
    """
    return _run(config, resume=False, weights=weights)


def _run(config: RunConfig, *, resume: bool, weights: Path | None) -> int:
    if resume:
        _check_resumable(config)
    inputs = run_inputs(config)
    folder = claim(config, resume=resume, adapter_bytes=_adapter_bytes(inputs.model))
    try:
        with stop_at_once(), Console(config) as console:
            for note in inputs.notes:
                console.note(note)
            _train(inputs, folder, console, resume=resume, weights=weights)
            console.close(write_report(folder.path))
    finally:
        release(folder)
    return 0


def _train(inputs: RunInputs, folder: RunDir, console: Console, *, resume: bool, weights: Path | None) -> None:
    config = inputs.config
    start_from = _newest_checkpoint(folder, console) if resume else None
    console.phase("starting actors")
    with StopRequest() as starting:  # what is half started cannot be closed
        runtime = start_runtime(config)
    try:
        starting.obey()
        actors = start_actors(config, inputs.model, runtime)
        if weights is not None:
            load = actors.learners.load if checkpoint.is_one(weights) else actors.learners.load_adapter
            load(weights)
            actors.sync()
        begin(folder, config, resume=resume)
        if not actors.learners.see(folder.path.resolve() / "config.yaml"):
            raise ConfigError(f"run.dir: {folder.path} is not on a disk that all nodes share; learners save there")
        partial = None if config.run.steps else _partial(config, folder, weights)
        algorithm: Algorithm = resolve("algorithm", config.algorithm.name)[0](config.algorithm, config.run.seed)
        resumed_step = None
        if resume:  # without a checkpoint nothing that was logged counts
            resumed_step = -1 if start_from is None else checkpoint.step_of(start_from)
        with run_log(folder.path, resumed_step=resumed_step) as log:
            if not resume:
                log.text("config", 0, f"```\n{dump(config)}```")
                if inputs.notes:
                    log.text("notes", 0, "\n\n".join(inputs.notes))
            trainer = Trainer(
                config=config,
                algorithm=algorithm,
                prompts=inputs.prompts,
                actors=actors,
                evaluator=Evaluator(config.eval, inputs.held_out, partial=partial),
                log=log,
                console=console,
                folder=folder,
            )
            trainer.fit(start_from)
        if partial is not None:
            partial.remove()
    finally:
        runtime.close()


def _partial(config: RunConfig, folder: RunDir, weights: Path | None) -> PartialEvaluation:
    """What was scored before by an evaluation of this configuration and these weights that was stopped."""
    file = folder.path.parent / f".{folder.path.name}.partial.jsonl"
    return PartialEvaluation(file, evaluation_identity(config, weights))


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


def _adapter_bytes(model: ModelSpec) -> int:
    """Of the adapter, in float32."""
    section = model.section
    transformer = model.path / "transformer"
    return 4 * num_adapter_parameters(transformer, rank=section.lora_rank, targets=section.lora_targets)


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
