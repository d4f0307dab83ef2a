"""What an experiment says, in words that follow from its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flowrl.base.amounts import count
from flowrl.matched.comparison import Comparison, Findings, compare, gain
from flowrl.matched.measures import Measure
from flowrl.matched.paired import FEWEST_PROMPTS, Difference, Interval
from flowrl.matched.turning import Kept, Turning
from flowrl.report.verdict import Sentence
from flowrl.report.wording import decimals_for, fixed, listed

Outcome = Literal["settled", "these models", "open", "undecided"]
LABELS: dict[Outcome, str] = {
    "settled": "settled",
    "these models": "clear for these models, open for other seeds",
    "open": "no difference found",
    "undecided": "nothing decides",
}
_BY_STRENGTH: tuple[Outcome, ...] = ("settled", "these models", "open", "undecided")


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
    """By the measure that decides, at the last step that all arms have.

    Of several arms the one that ends highest is held against each other one; the weakest of these answers counts.
    """
    moves = tuple(_moves(found, place) for place in range(len(found.record.arms)))
    measure = found.decides
    if measure is None:
        return Verdict(outcome="undecided", headline=_nothing_decides(found), support=_beside(found), moves=moves)
    best, *others = sorted(range(len(measure.arms)), key=lambda arm: -measure.mean(arm, -1))
    against = [compare(measure, best, other) for other in others]
    answer = max((outcome(one.at[-1]) for one in against), key=_BY_STRENGTH.index)
    pairs = [pair for pair in found.of(measure) if best in (pair.first, pair.second)]
    support = [sentence for pair in pairs for sentence in (_numbers(pair), *_at_checkpoints(pair))]
    return Verdict(
        outcome=answer,
        headline=_headline(measure, answer, best, against),
        support=(*support, *_beside(found)),
        moves=moves,
    )


def outcome(last: Difference) -> Outcome:
    """What a difference between two arms amounts to."""
    if last.settled:
        return "settled"
    return "these models" if last.clear else "open"


def _nothing_decides(found: Findings) -> Sentence:
    wanted = f" ({', '.join(found.record.decided_by)})" if found.record.decided_by else ""
    return Sentence(
        text=f"No arm can be preferred: what should decide{wanted} was not measured after training in all runs, or is "
        f"what an arm was trained on. Let a judge see the images: flowrl judge {found.record.folder}"
    )


def _headline(measure: Measure, answer: Outcome, best: int, against: list[Comparison]) -> Sentence:
    decimals = max(decimals_of(one.at[-1]) for one in against)
    name, step = measure.arms[best], f"after {count(measure.steps[-1], 'step')}"
    others = listed([f"{fixed(measure.mean(one.second, -1), decimals)} of {one.names[1]}" for one in against])
    own = fixed(measure.mean(best, -1), decimals)
    fallen = [gain(measure, arm) for arm in range(len(measure.arms))]
    all_fell = all(one is not None and one.clear and one.mean < 0 for one in fallen)
    values = f"{own} against {others} {step}" + (", though all fell" if all_fell else "")
    if answer == "settled":
        return Sentence(text=f"By {measure.spoken}, {name} trains the better model: {values}.", tone="good")
    if answer == "these models":
        seeds = len(measure.seeds)
        models = "model is the better one" if seeds == 1 else "models are the better ones"
        rest = f"But the {seeds} seeds differ so much that other seeds may say otherwise."
        if seeds == 1:
            rest = "One seed cannot say whether that is the arm or the seed."
        return Sentence(text=f"By {measure.spoken}, the {name} {models}: {values}. {rest}")
    few = ""
    if len(measure.prompts) < FEWEST_PROMPTS:
        few = f" {count(len(measure.prompts), 'prompt')} cannot show one: take {FEWEST_PROMPTS} or more."
    return Sentence(text=f"By {measure.spoken}, no difference is found {step}: {own} of {name}, {others}.{few}")


def _numbers(pair: Comparison) -> Sentence:
    last, (one, other) = pair.at[-1], pair.names
    decimals = decimals_of(last)
    prompts = f"{count(len(pair.measure.prompts), 'prompt')} of these models"
    text = f"{one} minus {other}: {spread(last.mean, last.prompts, decimals)} over {prompts}"
    if last.seeds is not None:
        by_seed = ", ".join(fixed(value, decimals, signed=True) for value in last.by_seed)
        both = (
            f"{bracketed(last.both, decimals)} over prompts and seeds" if last.both is not None else "unknown over both"
        )
        text += f", {both} (by seed {by_seed})"
    return Sentence(text=f"{text}; {one} is ahead on {100 * last.ahead:.0f} % of the prompts.")


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
    wholes = {measure.name: measure.part_of for measure in found.measures}
    fallen = {(one.arm, one.watched) for one in found.turnings}
    turned = [one for one in found.turnings if (one.arm, wholes[one.watched]) not in fallen]  # the whole says it
    return (*(_turned(one, found) for one in turned), *_less_diverse(found), *_keep(found))


def _moves(found: Findings, arm: int) -> Sentence:
    moved = []
    for measure in found.wholes:
        one = gain(measure, arm)
        if one is None:
            continue
        verb = "did not clearly change" if not one.clear else "rose" if one.mean > 0 else "fell"
        trained = ", trained on" if found.record.arms[arm].name in measure.trained_by else ""
        moved.append(f"{measure.title} {verb} ({spread(one.mean, one.prompts, decimals_of(one))}{trained})")
    name = found.record.arms[arm].name
    return Sentence(
        text=f"In {name}, {listed(moved)}." if moved else f"Nothing of {name} was measured before and after."
    )


def _turned(one: Turning, found: Findings) -> Sentence:
    decimals = decimals_of(one.fall)
    seeds = len(one.fall.by_seed)
    title = next(measure.spoken for measure in found.measures if measure.name == one.watched)
    started = one.from_start
    below = started is not None and started.mean < 0 and started.holds
    fall = f"from step {one.step} on {title} is clearly below its best (step {one.best}), at the end by "
    fall += f"{spread(one.fall.mean, one.fall.prompts, decimals)}{' and below where it started' if below else ''}, "
    fall += f"while {one.trained} has risen"
    if seeds == 1:
        return Sentence(
            text=f"In the one run of {one.arm} {fall}. One seed cannot tell a trend from its ups and downs."
        )
    return Sentence(text=f"Over-optimisation in {one.arm}: {fall}.", tone="bad")


def _less_diverse(found: Findings) -> list[Sentence]:
    for measure in found.measures:
        if measure.source == "diversity":
            falls = [(arm, gain(measure, place)) for place, arm in enumerate(measure.arms)]
            clear = [(arm, one) for arm, one in falls if one is not None and one.clear and one.mean < 0]
            said = [f"in {arm} by {spread(one.mean, one.prompts, decimals_of(one))}" for arm, one in clear]
            return [Sentence(text=f"Images of one prompt have become more alike: {listed(said)}.")] if said else []
    return []


def _keep(found: Findings) -> list[Sentence]:
    if found.decides is None or not found.keep:
        return []
    return [Sentence(text=" ".join(_kept(one, found.decides) for one in found.keep))]


def _kept(one: Kept, measure: Measure) -> str:
    decimals = decimals_of(one.gain)
    if one.step == 0:
        return f"By {measure.spoken} no checkpoint of {one.arm} is better than the base model."
    several = len(measure.seeds) > 1
    sure = one.gain.holds and one.gain.mean > 0
    found = spread(one.gain.mean, one.gain.both if several else one.gain.prompts, decimals)
    who = "prompts and seeds" if several else "prompts"
    doubt = "" if sure else ", not clearly more than nothing"
    return (
        f"Keep step {one.step} of {one.arm}: {measure.title} {fixed(one.mean, decimals)}; a step that other {who} "
        f"choose gains {found}{doubt}."
    )


def decimals_of(one: Difference) -> int:
    """How many decimals of a difference are worth showing."""
    return 2 if one.prompts is None else max(2, decimals_for((one.prompts.high - one.prompts.low) / 4))


def spread(mean: float, interval: Interval | None, decimals: int) -> str:
    """A difference with its interval: +0.012 [+0.004, +0.020]."""
    return f"{fixed(mean, decimals, signed=True)} {bracketed(interval, decimals)}"


def bracketed(interval: Interval | None, decimals: int) -> str:
    """An interval: [+0.004, +0.020]; [unknown] where there is none."""
    if interval is None:
        return "[unknown]"
    return f"[{fixed(interval.low, decimals, signed=True)}, {fixed(interval.high, decimals, signed=True)}]"
