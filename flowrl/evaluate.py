"""Held-out evaluation: fixed prompts and noise, ODE sampling, every reward, so that two evaluations differ only in
the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from flowrl.actors.run_actors import RunActors
from flowrl.config import EvalSection
from flowrl.evaluation_record import EvaluationRecord, evaluation_files, read_evaluation
from flowrl.partial_evaluation import PartialEvaluation
from flowrl.samples import write_sheet
from flowrl.types import Metric, Prompt, RolloutRequest, SamplingPlan, Scores, StepKind

_TOGETHER = 128  # groups on their way at a time, so that their latents and conditions fit in memory
_EVALUATION = -1  # stands where the step stands in the seeds of training samples


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The scores of the held-out samples, one group per prompt."""

    prompts: list[Prompt]
    scores: list[Scores]

    def values(self, name: str) -> torch.Tensor:
        """The scores of a reward: [prompts, samples] float32."""
        return torch.stack([group.per_reward[name] for group in self.scores])

    def means(self) -> dict[str, float]:
        """The mean score of each reward."""
        return {name: _finite_mean(self.values(name)).item() for name in self.scores[0].per_reward}

    def metrics(self) -> list[Metric]:
        """Mean, spread and standard error of each reward, and how diverse the samples of a prompt are.

        The standard error is that of the prompts' means: samples of one prompt are not independent.
        """
        metrics = []
        for name in self.scores[0].per_reward:
            values = self.values(name)
            finite = values[values.isfinite()]
            metrics += [
                Metric(key=f"eval/{name}/mean", value=_finite_mean(values).item()),
                Metric(key=f"eval/{name}/std", value=finite.std(correction=0).item() if len(finite) else math.nan),
                Metric(key=f"eval/{name}/sem", value=_standard_error(values)),
                Metric(key=f"eval/{name}/invalid", value=1 - len(finite) / values.numel()),
            ]
        if (diversity := self.diversity()) is not None:
            metrics.append(Metric(key="eval/diversity/mean", value=sum(diversity) / len(diversity)))
        return metrics

    def diversity(self) -> list[float] | None:
        """How far apart the samples of each prompt are; None with one sample, which is apart from nothing."""
        return [group.diversity for group in self.scores] if len(self.scores[0].total) > 1 else None


class Evaluator:
    """Evaluates whatever weights the rollouts hold, always on the same prompts and noise."""

    def __init__(
        self, section: EvalSection, prompts: list[Prompt], *, partial: PartialEvaluation | None = None
    ) -> None:
        """With `partial` scores are kept as they come, and those that are there already are not made again."""
        self._section = section
        self._prompts = prompts[: section.num_prompts]
        self._partial = partial

    def evaluate(self, actors: RunActors) -> Evaluation:
        """Sample and score all held-out prompts; the first `grid_prompts` bring their images."""
        section = self._section
        kind: StepKind = "ode"
        plan = SamplingPlan(kinds=(kind,) * section.num_steps, noise_level=0.0, start=0, stop=0)
        requests = [
            RolloutRequest(
                prompt=prompt,
                seed=section.seed,
                step=_EVALUATION,
                num_samples=section.samples_per_prompt,
                plan=plan,
                guidance_scale=section.guidance_scale,
            )
            for prompt in self._prompts
        ]
        texts = [prompt.text for prompt in self._prompts]
        shown, rest = range(section.grid_prompts), range(section.grid_prompts, len(requests))
        scores: dict[int, Scores] = {}  # by place
        if self._partial is not None:  # images are not kept
            scores = {place: kept for place in rest if (kept := self._partial.get(place)) is not None}
        left = [place for place in rest if place not in scores]
        parts = [(list(shown), section.samples_per_prompt)] if shown else []
        parts += [(left[start : start + _TOGETHER], 0) for start in range(0, len(left), _TOGETHER)]
        for places, num_images in parts:
            some = [requests[place] for place in places]
            conditions = actors.encode(some, soon=texts)
            groups = actors.sample_and_score(some, conditions, num_images=num_images)
            new = dict(zip(places, groups.scores, strict=True))
            scores |= new
            if self._partial is not None and not num_images:
                self._partial.add(new)
        return Evaluation(prompts=self._prompts, scores=[scores[place] for place in range(len(requests))])

    def save(self, result: Evaluation, folder: Path, step: int) -> list[Metric]:
        """Keep every score in `folder`, and tell how far each reward has moved since the first evaluation.

        Prompts and noise are the same, so scores are compared prompt by prompt: the standard error is that of the
        differences, which is far smaller than that of either mean.
        """
        scores = {
            name: [[x if math.isfinite(x) else None for x in row] for row in result.values(name).tolist()]
            for name in result.scores[0].per_reward
        }
        prompts = [prompt.text for prompt in result.prompts]
        EvaluationRecord(step=step, prompts=prompts, scores=scores, diversity=result.diversity()).write(folder)
        first = read_evaluation(evaluation_files(folder)[0])
        if first.step == step:
            return []
        metrics = []
        for name in scores:
            before = torch.tensor([[math.nan if x is None else x for x in row] for row in first.scores[name]])
            moved = result.values(name) - before
            metrics.append(Metric(key=f"eval/{name}/gain", value=_finite_mean(moved).item()))
            metrics.append(Metric(key=f"eval/{name}/gain_sem", value=_standard_error(moved)))
        return metrics

    def save_grid(self, result: Evaluation, folder: Path, step: int) -> torch.Tensor | None:
        """Write the sheet of samples of a step and return its grid, one row per prompt: [3, H, W] uint8, if any."""
        shown = [group for group in result.scores if group.images is not None]
        if not shown:
            return None
        images = torch.cat([group.images for group in shown if group.images is not None])
        scores = {name: result.values(name)[: len(shown)].tolist() for name in shown[0].per_reward}
        return write_sheet(folder, step, images, [p.text for p in result.prompts[: len(shown)]], scores)


def _finite_mean(values: torch.Tensor) -> torch.Tensor:
    """The mean of the scores that exist; NaN when none does."""
    return values[values.isfinite()].mean()


def _standard_error(values: torch.Tensor) -> float:
    """Of the mean of [prompts, samples], from the prompts' means; NaN with fewer than two prompts."""
    means = torch.stack([_finite_mean(row) for row in values])
    means = means[means.isfinite()]
    return means.std().item() / math.sqrt(len(means)) if len(means) > 1 else math.nan
