"""The training loop: encode, sample, score, advantages, update, sync. Read this page first; run_actors.py is next."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from flowrl.actors.run_actors import RunActors
from flowrl.base import checkpoint
from flowrl.base.signals import StopRequest
from flowrl.clock import Clock
from flowrl.config import RunConfig
from flowrl.console import Console
from flowrl.data import PromptOrder
from flowrl.evaluate import Evaluator
from flowrl.memory import MemoryMeter
from flowrl.metrics import MetricLog, reduce
from flowrl.protocols import Algorithm
from flowrl.run_dir import RunDir, settle
from flowrl.summary import advantage_metrics, check_valid, cost_metrics, score_metrics
from flowrl.types import Metric, RolloutRequest


@dataclass(kw_only=True)
class Trainer:
    """One run. It moves references, scores and advantages; latents go from actor to actor."""

    config: RunConfig
    algorithm: Algorithm
    prompts: PromptOrder
    actors: RunActors
    evaluator: Evaluator
    log: MetricLog
    console: Console
    folder: RunDir
    memory: MemoryMeter = field(default_factory=MemoryMeter, init=False)

    def fit(self, resume_from: Path | None = None) -> int:
        """Run all steps, or those after a checkpoint; returns the last step that was done."""
        config = self.config
        done = self._start(resume_from)
        with StopRequest() as stop:
            while done < config.run.steps and stop.asked is None:
                step = done + 1
                metrics = self.train_step(step)
                last = step == config.run.steps
                if config.eval.due(step, config.run.steps):
                    metrics += self._evaluate(step)
                due = config.checkpoint.every and step % config.checkpoint.every == 0
                if due or last or stop.asked is not None:
                    metrics += self._save(step)
                values = reduce(metrics)
                self.log.log(step, values)
                self.console.step(step, values)
                done = step
            if stop.asked is not None:
                self.console.note(f"{stop.asked}: stopped after step {done}; continue with --resume {self.folder.path}")
        self.actors.learners.export(self.folder.lora)
        return done

    def train_step(self, step: int) -> list[Metric]:
        """One step; the metrics say what happened and how long it took."""
        actors, clock = self.actors, Clock()
        with clock.phase("step"):
            requests = self._requests(step)
            with clock.phase("encode"):
                soon = self.prompts.texts_ahead(step, self.config.data.encode_ahead)
                conditions = actors.encode(requests, soon=soon)
            groups = actors.sample_and_score(requests, conditions)
            check_valid(groups.scores, self.config.rewards.max_invalid_fraction)
            with clock.phase("advantages"):
                advantages = self.algorithm.advantages(groups.scores)
            with clock.phase("update"):
                updates = actors.learners.update(step, groups.trajectories, advantages)
            with clock.phase("sync"):
                weight_bytes = actors.sync()
        return [
            *score_metrics(groups.scores),
            *advantage_metrics(advantages),
            *updates,
            *cost_metrics(clock, groups, weight_bytes),
            *self.memory.metrics(actors.runtime.memory_bytes()),
        ]

    def _requests(self, step: int) -> list[RolloutRequest]:
        """One order for a group per prompt of the step."""
        rollout = self.config.rollout
        plan = self.algorithm.plan(step, rollout.num_steps)
        return [
            RolloutRequest(
                prompt=prompt,
                seed=self.config.run.seed,
                step=step,
                num_samples=rollout.group_size,
                plan=plan,
                guidance_scale=rollout.guidance_scale,
                keep_means=self.algorithm.needs_means,
            )
            for prompt in self.prompts.take(step)
        ]

    def _start(self, resume_from: Path | None) -> int:
        """Continue from a checkpoint, or evaluate what training starts from; returns the last step that was done."""
        if resume_from is None:
            self.log.log(0, reduce(self._evaluate(0)))
            settle(self.folder)
            return 0
        self.actors.learners.load(resume_from)
        self.actors.sync()
        return checkpoint.step_of(resume_from)

    def _evaluate(self, step: int) -> list[Metric]:
        clock = Clock()
        self.console.phase("evaluating")
        with clock.phase("eval"), self.actors.evaluation_weights(ema=self.config.eval.weights == "ema"):
            result = self.evaluator.evaluate(self.actors)
        grid = self.evaluator.save_grid(result, self.folder.samples, step)
        if grid is not None:
            self.log.images("samples", step, grid)
        self.console.evaluation(step, result.means())
        gains = self.evaluator.save(result, self.folder.evaluations, step)
        return [*result.metrics(), *gains, *clock.metrics()]

    def _save(self, step: int) -> list[Metric]:
        clock = Clock()
        with clock.phase("checkpoint"):
            keep = self.config.checkpoint.keep
            checkpoint.save(self.folder.checkpoints, step, self.actors.learners.save, keep=keep)
        return clock.metrics()
