"""The training loop: sample, score, advantages, update, sync. Read this page first."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from flowrl.actors.roles import Actors
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
from flowrl.summary import advantage_metrics, check_valid, score_metrics
from flowrl.types import Metric, RolloutRequest, SamplingPlan


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
                if config.eval.every and (step % config.eval.every == 0 or last):
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
        config, clock = self.config, Clock()
        with clock.phase("step"):
            plan = self.algorithm.plan(step, config.rollout.num_steps)
            soon = self.prompts.texts_ahead(step, config.data.encode_ahead)
            groups = self.actors.sample_and_score(self._requests(step, plan), texts=soon)
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
        num_images = len(groups.scores) * config.rollout.group_size
        return [
            *score_metrics(groups.scores),
            *advantage_metrics(advantages),
            *updates,
            *clock.metrics(),
            *self.memory.metrics(self.actors.runtime.memory_bytes()),
            Metric(key="bytes/weights", value=weight_bytes),
            Metric(key="speed/images_per_s", value=num_images / clock.seconds("step")),
        ]

    def _requests(self, step: int, plan: SamplingPlan) -> list[RolloutRequest]:
        """One order for a group per prompt of the step."""
        rollout = self.config.rollout
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
        gains = self.evaluator.gains(result, self.folder.evaluations, step)
        return [*result.metrics(), *gains, *clock.metrics()]

    def _save(self, step: int) -> list[Metric]:
        clock = Clock()
        with clock.phase("checkpoint"):
            keep = self.config.checkpoint.keep
            checkpoint.save(self.folder.checkpoints, step, self.actors.learners.save, keep=keep)
        return clock.metrics()
