"""What an experiment says, in words that follow from its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flowrl.base.amounts import count
from flowrl.matched.comparison import Comparison, Findings, gain
from flowrl.matched.measures import Measure
from flowrl.matched.paired import Difference, Interval
from flowrl.matched.turning import Kept, Turning
from flowrl.report.verdict import Sentence
from flowrl.report.wording import decimals_for, fixed, listed

Outcome = Literal["settled", "these models", "level", "undecided"]
LABELS: dict[Outcome, str] = {
    "settled": "settled",
    "these models": "clear for these models, open for other seeds",
    "level": "no difference found",
    "undecided": "nothing decides",
}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The answer, and what it rests on."""

    outcome: Outcome
    headline: Sentence
    support: tuple[Sentence, ...]
    moves: tuple[Sentence, ...]  # of each arm by itself

    @property
    def sentences(self) -> tuple[Sentence, ...]:
        """All of it."""
        return (self.headline, *self.support, *self.moves)


def verdict(found: Findings) -> Verdict:
    """By the measure that decides, at the last step that all arms have; first the arm that was named first."""
    moves = tuple(_moves(found, place) for place in range(len(found.record.arms)))
    if found.decides is None:
        return Verdict(outcome="undecided", headline=_nothing_decides(found), support=_beside(found), moves=moves)
    pairs = found.of(found.decides)
    headline, *more = (sentence for pair in pairs for sentence in _of_pair(pair))
    return Verdict(outcome=outcome(pairs[0].at[-1]), headline=headline, support=(*more, *_beside(found)), moves=moves)


def outcome(last: Difference) -> Outcome:
    """What a difference between two arms amounts to."""
    if last.settled:
        return "settled"
    return "these models" if last.clear else "level"


def _nothing_decides(found: Findings) -> Sentence:
    trained = [measure.name for measure in found.measures if measure.trained_by]
    wanted = f" ({', '.join(found.record.judged_by)})" if found.record.judged_by else ""
    text = f"Neither arm can be preferred: what should decide{wanted} was not measured in all runs"
    if trained:
        text += (
            f", and {listed(trained)} {'is what an arm was' if len(trained) == 1 else 'are what arms were'} trained on"
        )
    return Sentence(text=f"{text}. Let a judge see the images: flowrl judge {found.record.folder}")


def _of_pair(pair: Comparison) -> list[Sentence]:
    last, measure = pair.at[-1], pair.measure
    ahead, behind = (pair.first, pair.second) if last.mean >= 0 else (pair.second, pair.first)
    decimals = decimals_of(last)
    scores = [fixed(measure.mean(arm, -1), decimals) for arm in (ahead, behind)]
    name, step = measure.arms[ahead], f"after {count(measure.steps[-1], 'step')}"
    lost = [gain(measure, arm) for arm in (ahead, behind)]
    both_fell = all(one is not None and one.clear and one.mean < 0 for one in lost)
    values = (
        f"{scores[0]} against {scores[1]} of {measure.arms[behind]} {step}{', though both fell' if both_fell else ''}"
    )
    kind = outcome(last)
    if kind == "settled":
        first = Sentence(text=f"By {measure.spoken}, {name} trains the better model: {values}.", tone="good")
    elif kind == "these models":
        seeds = len(measure.seeds)
        rest = "One seed cannot say whether that is the arm or the seed." if seeds == 1 else (
            f"But the {seeds} seeds differ so much that other seeds may say otherwise.")  # fmt: skip
        models = "model is the better one" if seeds == 1 else "models are the better ones"
        first = Sentence(text=f"By {measure.spoken}, the {name} {models}: {values}. {rest}")
    else:
        first = Sentence(
            text=f"By {measure.spoken}, no difference is found {step}: {scores[0]} of {name}, {scores[1]} of "
            f"{measure.arms[behind]}."
        )
    return [first, _numbers(pair), *_at_checkpoints(pair)]


def _numbers(pair: Comparison) -> Sentence:
    last, (one, other) = pair.at[-1], pair.names
    decimals = decimals_of(last)
    text = f"{one} minus {other}: {spread(last.mean, last.prompts, decimals)} over {len(pair.measure.prompts)} prompts"
    if last.seeds is not None:
        by_seed = ", ".join(fixed(value, decimals, signed=True) for value in last.by_seed)
        text += f", {bracketed(last.seeds, decimals)} over {len(last.by_seed)} seeds ({by_seed})"
    return Sentence(text=f"{text}; {one} is ahead on {last.ahead:.0%} of the prompts.")


def _at_checkpoints(pair: Comparison) -> list[Sentence]:
    after = pair.trained
    if len(after) < 2:
        return []
    sides = []
    for name, sign in zip(pair.names, (1, -1), strict=True):
        leads = [one for _, one in after if sign * one.mean > 0]
        sides.append(f"{name} is ahead at {len(leads)}, clearly at {sum(one.clear for one in leads)}")
    return [Sentence(text=f"Of {len(after)} matched checkpoints {'; '.join(sides)}.")]


def _beside(found: Findings) -> tuple[Sentence, ...]:
    parts = {measure.name for measure in found.measures if measure.part_of}
    turned = [one for one in found.turnings if one.watched not in parts]
    return (*(_turned(one, found) for one in turned), *_keep(found))


def _moves(found: Findings, arm: int) -> Sentence:
    moved = []
    for measure in found.wholes:
        one = gain(measure, arm)
        if one is None:
            continue
        verb = "held" if not one.clear else "rose" if one.mean > 0 else "fell"
        trained = ", trained on" if found.record.arms[arm].name in measure.trained_by else ""
        moved.append(f"{measure.title} {verb} ({spread(one.mean, one.prompts, decimals_of(one))}{trained})")
    return Sentence(text=f"In {found.record.arms[arm].name}, {listed(moved)}." if moved else "No arm was trained.")


def _turned(one: Turning, found: Findings) -> Sentence:
    decimals = decimals_of(one.fall)
    falling = sum(value < 0 for value in one.fall.by_seed)
    seeds = f", in {falling} of {len(one.fall.by_seed)} seeds" if len(one.fall.by_seed) > 1 else ""
    title = next(measure.title for measure in found.measures if measure.name == one.watched)
    below = one.from_start.clear and one.from_start.mean < 0
    return Sentence(
        text=f"Over-optimisation in {one.arm} from step {one.step} on: {one.trained} still rises while {title} falls, "
        f"by {spread(one.fall.mean, one.fall.prompts, decimals)} from its best (step {one.best}){seeds}"
        f"{', to below where it started' if below else ''}.",
        tone="bad",
    )


def _keep(found: Findings) -> list[Sentence]:
    if found.decides is None or len(found.decides.steps) < 2:
        return []
    return [Sentence(text=" ".join(_kept(one, found.decides) for one in found.keep))]


def _kept(one: Kept, measure: Measure) -> str:
    decimals = decimals_of(one.gain)
    if one.step == measure.steps[0]:
        return f"Keep nothing of {one.arm}: {measure.spoken} is highest before training."
    found = spread(one.gain.mean, one.gain.prompts, decimals)
    doubt = "" if one.gain.clear else ", which is not clearly more than nothing"
    return f"Keep step {one.step} of {one.arm}: {measure.title} {fixed(one.mean, decimals)}, a gain of {found}{doubt}."


def decimals_of(one: Difference) -> int:
    """How many decimals of a difference are worth showing."""
    return max(2, decimals_for((one.prompts.high - one.prompts.low) / 4))


def spread(mean: float, interval: Interval, decimals: int) -> str:
    """A difference with its interval: +0.012 [+0.004, +0.020]."""
    return f"{fixed(mean, decimals, signed=True)} {bracketed(interval, decimals)}"


def bracketed(interval: Interval, decimals: int) -> str:
    """An interval: [+0.004, +0.020]."""
    return f"[{fixed(interval.low, decimals, signed=True)}, {fixed(interval.high, decimals, signed=True)}]"
