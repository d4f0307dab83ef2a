"""The training loop: sample, score, advantages, update, sync. Read this page first."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from flowrl import checkpoint
from flowrl.actors.roles import Actors
from flowrl.clock import Clock
from flowrl.config import RunConfig
from flowrl.console import Console
from flowrl.data import PromptOrder
from flowrl.evaluate import Evaluator
from flowrl.metrics import MetricLog, reduce
from flowrl.protocols import Algorithm
from flowrl.run_dir import RunDir
from flowrl.signals import StopRequest
from flowrl.summary import (
    advantage_metrics,
    check_valid,
    driver_memory_bytes,
    score_metrics,
)
from flowrl.types import Metric, RolloutRequest

_GIB = 2**30


@dataclass(kw_only=True)
class Trainer:
    """One run. It moves references, scores and advantages; latents go from actor to actor."""

    config: RunConfig
    algorithm: Algorithm
    prompts: PromptOrder
    actors: Actors
    evaluator: Evaluator
    log: MetricLog
    console: Console
    folder: RunDir
    peak_bytes: int = field(default=0, init=False)

    def fit(self, resume_from: Path | None = None) -> int:
        """Run all steps, or those after a checkpoint; returns the last step that was done."""
        config = self.config
        done = 0
        if resume_from is not None:
            self.actors.learners.load(resume_from)
            self.actors.sync()
            done = checkpoint.step_of(resume_from)
        else:
            self.log.log(0, reduce(self._evaluate(0)))
        with StopRequest() as stop:
            while done < config.run.steps and stop.asked is None:
                step = done + 1
                metrics = self.train_step(step)
                if config.eval.every and (step % config.eval.every == 0 or step == config.run.steps):
                    metrics += self._evaluate(step)
                clock = Clock()
                due = config.checkpoint.every and step % config.checkpoint.every == 0
                if due or step == config.run.steps or stop.asked is not None:
                    with clock.phase("checkpoint"):
                        checkpoint.save(
                            self.folder.checkpoints, step, self.actors.learners.save, keep=config.checkpoint.keep
                        )
                values = reduce([*metrics, *clock.metrics()])
                self.log.log(step, values)
                self.console.step(step, values)
                done = step
            if stop.asked is not None:
                self.console.note(f"{stop.asked}: stopped after step {done}; continue with --resume {self.folder.path}")
        self.actors.learners.export(self.folder.lora)
        return done

    def train_step(self, step: int) -> list[Metric]:
        """One step; the metrics say what happened and how long it took."""
        config, clock = self.config, Clock()
        with clock.phase("step"):
            plan = self.algorithm.plan(step, config.rollout.num_steps)
            requests = [
                RolloutRequest(
                    prompt=prompt,
                    seed=config.run.seed,
                    step=step,
                    num_samples=config.rollout.group_size,
                    plan=plan,
                    guidance_scale=config.rollout.guidance_scale,
                    keep_means=self.algorithm.needs_means,
                )
                for prompt in self.prompts.take(step)
            ]
            groups = self.actors.sample(requests)
            clock.add("encode", groups.encode_s)
            clock.add("rollout", groups.rollout_s)
            clock.add("score", groups.score_s)
            check_valid(groups.scores, config.rewards.max_invalid_fraction)
            with clock.phase("advantages"):
                advantages = self.algorithm.advantages(groups.scores)
            with clock.phase("update"):
                updates = self.actors.learners.update(step, groups.trajectories, advantages)
            with clock.phase("sync"):
                weight_bytes = self.actors.sync()
        return [
            *score_metrics(groups.scores),
            *advantage_metrics(advantages),
            *updates,
            *clock.metrics(),
            *self._costs(clock, weight_bytes, len(requests) * config.rollout.group_size),
        ]

    def _evaluate(self, step: int) -> list[Metric]:
        clock = Clock()
        self.console.phase("evaluating")
        with clock.phase("eval"):
            ema = self.config.eval.weights == "ema"
            if ema:
                self.actors.sync(ema=True)
            result = self.evaluator.evaluate(self.actors)
            if ema:
                self.actors.sync()
        grid = self.evaluator.save_grid(result, self.folder.samples, step)
        if grid is not None:
            self.log.images("samples", step, grid)
        self.console.evaluation(step, result.means())
        gains = self.evaluator.gains(result, self.folder.evaluations, step)
        return [*result.metrics(), *gains, *clock.metrics()]

    def _costs(self, clock: Clock, weight_bytes: int, num_images: int) -> list[Metric]:
        driver, actors = driver_memory_bytes(), self.actors.runtime.memory_bytes()
        self.peak_bytes = max(self.peak_bytes, driver + actors)
        return [
            Metric(key="bytes/weights", value=weight_bytes),
            Metric(key="memory/driver_gib", value=driver / _GIB),
            Metric(key="memory/actors_gib", value=actors / _GIB),
            Metric(key="memory/peak_gib", value=self.peak_bytes / _GIB),
            Metric(key="speed/images_per_s", value=num_images / clock.seconds("step")),
        ]
