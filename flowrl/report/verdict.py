"""What the numbers of a run say, in words: did it learn, at whose expense, and can it be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from flowrl.registry import part_of
from flowrl.report.run_record import RunRecord
from flowrl.report.wording import PLUS_MINUS, decimals_for, fixed, listed, significant

Movement = Literal["rose", "fell", "held"]
Tone = Literal["good", "bad", "neutral"]
_CLEAR = 2.0  # standard errors of a difference that counts as one
_ROUNDING = 1e-4  # of a score, below which nothing has happened


@dataclass(frozen=True, kw_only=True)
class Change:
    """How one held-out measure moved between the first and the last evaluation.

    Both evaluations use the same prompts and noise, so the error of the difference comes from the differences prompt
    by prompt. Where that is not on record it is computed as if the two were independent, which is an upper bound.
    """

    name: str
    trained: bool
    first_step: int
    last_step: int
    before: float
    after: float
    before_sem: float  # NaN where unknown
    after_sem: float
    paired_sem: float | None = None  # of the difference, prompt by prompt

    @property
    def difference(self) -> float:
        """After minus before."""
        return self.after - self.before

    @property
    def sem(self) -> float:
        """The standard error of the difference."""
        return math.hypot(self.before_sem, self.after_sem) if self.paired_sem is None else self.paired_sem

    @property
    def movement(self) -> Movement:
        """Whether the difference is clear, and its direction: over two of its standard errors, and no mere rounding.

        Where the error is unknown, nothing is clear.
        """
        if math.isnan(self.sem) and self.first_step != self.last_step:
            return "held"
        scale = max(abs(self.before), abs(self.after))
        if abs(self.difference) <= max(_CLEAR * self.sem, _ROUNDING * scale):
            return "held"
        return "rose" if self.difference > 0 else "fell"

    @property
    def decimals(self) -> int:
        """How many decimals are worth showing."""
        return max(2, decimals_for(self.sem))

    def words(self) -> str:
        """The difference with its error: +0.75 +- 0.05."""
        error = f" {PLUS_MINUS} {fixed(self.sem, self.decimals)}" if self.sem > 0 else ""
        return f"{fixed(self.difference, self.decimals, signed=True)}{error}"

    def span(self) -> str:
        """From where to where: 1.23 to 1.98."""
        return f"{fixed(self.before, self.decimals)} to {fixed(self.after, self.decimals)}"


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """One statement about a run."""

    text: str
    tone: Tone = "neutral"


def changes(record: RunRecord) -> list[Change]:
    """Every measure from its first to its last evaluation (the same where there was one), trained ones first."""
    found = []
    for name in record.measures:
        means = record.series(f"eval/{name}/mean")
        errors = dict(record.series(f"eval/{name}/sem"))
        paired = dict(record.series(f"eval/{name}/gain_sem"))
        (first, before), (last, after) = means[0], means[-1]
        found.append(
            Change(
                name=name,
                trained=name in record.trained_rewards,
                first_step=first,
                last_step=last,
                before=before,
                after=after,
                before_sem=errors.get(first, math.nan),
                after_sem=errors.get(last, math.nan),
                paired_sem=paired.get(last),
            )
        )
    return found


def verdict(record: RunRecord) -> list[Sentence]:
    """The headline, then what supports or qualifies it; never empty."""
    found = changes(record)
    if not found:
        return [Sentence(text="No evaluation was recorded, so nothing can be said about learning.")]
    shown = [change for change in found if change.trained] or found
    if all(change.first_step == change.last_step for change in found):
        step = shown[0].first_step
        values = listed([f"{change.name} {with_error(change.before, change.before_sem)}" for change in shown])
        if record.config is not None and record.config.run.steps == 0:
            return [Sentence(text=f"Evaluated: {values}."), Sentence(text="The run did not train.")]
        when = "before training" if step == 0 else f"after step {step}"
        return [
            Sentence(text=f"Evaluated {when}: {values}."),
            Sentence(text="There is one evaluation only, so nothing can be said about learning."),
        ]
    sentences = [_headline(change) for change in shown]
    watched = [change for change in found if not change.trained]
    rest = [_moved(watched, movement) for movement in ("rose", "fell", "held")]
    if any(rest) and record.trained_rewards:
        sentences.append(Sentence(text=f"Not trained on: {'; '.join(text for text in rest if text)}."))
    lost = [change for change in watched if change.movement == "fell"]
    risen = [change.name for change in found if change.trained and change.movement == "rose"]
    if lost and risen:
        names = listed([change.name for change in lost])
        sentences.append(
            Sentence(
                text=f"{listed(risen)} rose while {names} fell: the policy may be exploiting what the reward does "
                "not see. Look at the samples before trusting the reward.",
                tone="bad",
            )
        )
    return sentences


def _headline(change: Change) -> Sentence:
    if change.movement == "held":
        return Sentence(text=f"{change.name} did not clearly change: {change.span()} ({change.words()}).")
    tone: Tone = "good" if change.movement == "rose" else "bad"
    return Sentence(text=f"{change.name} {change.movement} from {change.span()} ({change.words()}).", tone=tone)


def _moved(found: list[Change], movement: Movement) -> str:
    names = [change.name for change in found]
    moved = [change for change in found if change.movement == movement and part_of(change.name, names) is None]
    if not moved:
        return ""
    if movement == "held":
        return f"{listed([change.name for change in moved])} did not clearly change"
    return listed([f"{change.name} {movement} ({change.words()})" for change in moved])


def with_error(value: float, sem: float, decimals: int | None = None) -> str:
    """A value with its standard error, with as many decimals as the error is worth or as given: 1.23 +- 0.05."""
    decimals = max(2, decimals_for(sem)) if decimals is None else decimals
    return fixed(value, decimals) + (f" {PLUS_MINUS} {fixed(sem, decimals)}" if sem > 0 else "")


def violations(record: RunRecord) -> list[str]:
    """Why the numbers of a run should not be taken at face value, in words; empty where nothing is wrong."""
    found = list(record.problems)
    if record.planned_steps is not None and record.last_step < record.planned_steps:
        found.append(
            f"The run is not complete: step {record.last_step} of {record.planned_steps} is the last one on record. "
            f"Continue it with: flowrl train --resume {record.directory}"
        )
    if record.config is None:
        return found
    ratio = record.series("policy/ratio_absdev_max")
    limit = 0.0 if record.config.placement.device == "cpu" else record.config.gate.max_ratio_absdev
    broken = [(step, value) for step, value in ratio if value > limit]
    if broken:
        step, worst = max(broken, key=lambda point: point[1])
        rule = "exactly 0 on the CPU" if limit == 0 else f"at most {significant(limit)} (gate.max_ratio_absdev)"
        found.append(
            f"The replay does not repeat the rollout: policy/ratio_absdev_max must be {rule}, but is up to "
            f"{significant(worst)} (step {step}; {len(broken)} of {len(ratio)} steps)."
        )
    allowed = record.config.rewards.max_invalid_fraction
    for name in record.trained_rewards:
        failed = [(step, value) for step, value in record.series(f"reward/{name}/invalid") if value > allowed]
        if failed:
            step, worst = max(failed, key=lambda point: point[1])
            found.append(
                f"{name} failed on {worst:.0%} of the images of step {step}; at most {allowed:.0%} may fail "
                "(rewards.max_invalid_fraction)."
            )
    return found
