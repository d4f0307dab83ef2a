"""What "accuracy" means: each published definition under a name, all as a weighted mean of credits over pairs.

A pair has a credit in [0, 1] (1 right, 0 wrong) and a weight that depends on the labels alone; the accuracy is
sum(credit * weight) / sum(weight). So every protocol is resampled, split by category and compared in one way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from flowrl.base.config_tree import ConfigError, did_you_mean
from flowrl.base.errors import UserError
from rewards.data.pairs import PairTable

Measure = Literal["probability", "score"]


@dataclass(frozen=True, kw_only=True)
class TieRule:
    """When a reward is taken to call a pair a tie: the gap of its two scores is at most `threshold`.

    Example: ``TieRule(threshold=0.2, measure="probability", scale=1.0)``
    """

    threshold: float
    measure: Measure  # "probability": |p0 - p1|, p the softmax of scale * scores; "score": |s0 - s1|
    scale: float = 1.0  # of the scores in the softmax

    def gaps(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """How far the scores [M] of two images are apart, in this rule's measure: [M] float64."""
        return _gaps(left, right, self.measure, self.scale)


@dataclass(frozen=True, kw_only=True)
class Credits:
    """What a reward earns on each pair of a table under one protocol.

    Example: two pairs, one right and one left out: ``Credits(credit=torch.tensor([1.0, 0.0]).double(),
    weight=torch.tensor([1.0, 0.0]).double(), equal=torch.tensor([False, False]))``
    """

    credit: torch.Tensor  # [M] float64 in [0, 1]
    weight: torch.Tensor  # [M] float64; 0 where the protocol leaves the pair out
    equal: torch.Tensor  # [M] bool: the two scores are exactly equal

    @property
    def accuracy(self) -> float:
        """In [0, 1]; NaN when no pair is counted."""
        return float((self.credit * self.weight).sum() / self.weight.sum())

    @property
    def counted(self) -> torch.Tensor:
        """The pairs that the accuracy is over: [M] bool."""
        return self.weight > 0

    @property
    def num_equal(self) -> int:
        """How many counted pairs have two scores that are exactly equal."""
        return int((self.equal & self.counted).sum())

    def only(self, mask: torch.Tensor) -> Credits:
        """The same with no pair counted but those of `mask` [M]: the accuracy of one source or category."""
        return Credits(credit=self.credit, weight=self.weight * mask, equal=self.equal)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One definition of accuracy: what is counted, and where the definition is from."""

    name: str
    definition: str
    source: str
    ties: str  # what it does with pairs that people tied, as the page says it
    weight: Callable[[PairTable], torch.Tensor]  # [M] float64, from the labels
    tie_measure: Measure | None = None  # of the TieRule that it needs, found on validation pairs; None: it needs none
    pairs_only: bool = False  # whether a ranking of more than two images is a mistake

    @property
    def needs_winner(self) -> bool:
        """Whether ties alone say nothing: it leaves them out, or counts them as right whatever the scores are."""
        return self.tie_measure is None

    def suits(self, table: PairTable) -> bool:
        """Whether it can count these comparisons."""
        return not (self.pairs_only and len(table) and int(torch.bincount(table.comparison).max()) > 1)

    def credits(self, table: PairTable, scores: torch.Tensor, rule: TieRule | None = None) -> Credits:
        """The credits of finite scores [N], one for each row that the table points at.

        Raises ValueError on a score that is not finite or a missing or superfluous tie rule, and UserError when the
        comparisons do not suit the protocol.
        """
        if not self.suits(table):
            raise UserError(
                f"protocol {self.name} counts pairs, but there is a comparison of more than two images; use "
                "rankings_pooled or rankings_per_prompt"
            )
        if (rule is not None) != (self.tie_measure is not None):
            raise ValueError(f"protocol {self.name} {'needs a' if self.tie_measure else 'has no'} tie rule")
        winner, loser = scores.double()[table.winner], scores.double()[table.loser]
        if not (winner.isfinite().all() and loser.isfinite().all()):
            raise ValueError("accuracy needs finite scores; leave out the pairs that have none")
        verdict = torch.sign(winner - loser)
        weight, equal = self.weight(table), verdict == 0
        if rule is not None:
            verdict = torch.where(rule.gaps(winner, loser) <= rule.threshold, 0.0, verdict)
            one_is_tie = (verdict == 0) != table.tie
            right = torch.where(table.tie, verdict == 0, verdict > 0)
            return Credits(credit=right.double() + 0.5 * one_is_tie, weight=weight, equal=equal)
        # The pairs that people tied have no weight or, per prompt, are never discordant.
        return Credits(credit=((verdict > 0) | table.tie).double(), weight=weight, equal=equal)


def _gaps(left: torch.Tensor, right: torch.Tensor, measure: Measure, scale: float) -> torch.Tensor:
    gap = (left - right).abs()
    # The difference of the two probabilities of a softmax over two is the tanh of half the difference of its inputs.
    return torch.tanh(scale * gap / 2) if measure == "probability" else gap


def _without_ties(table: PairTable) -> torch.Tensor:
    return (~table.tie).double()


def _all(table: PairTable) -> torch.Tensor:
    return torch.ones(len(table), dtype=torch.float64)


def _each_comparison_once(table: PairTable) -> torch.Tensor:
    # Of the pairs that are there: a ranking one of whose images is missing counts by its other pairs.
    if not len(table):
        return torch.zeros(0, dtype=torch.float64)
    return 1.0 / torch.bincount(table.comparison)[table.comparison].double()


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="pairs",
            definition="share of labelled pairs with score(preferred) > score(other); equal scores are wrong",
            source="HPSv3 evaluate.py, pair mode (arXiv 2508.03789)",
            ties="left out",
            weight=_without_ties,
            pairs_only=True,
        ),
        Protocol(
            name="rankings_pooled",
            definition="the same over all pairs of all rankings that people did not tie; every pair counts once",
            source="ImageReward test.py (arXiv 2304.05977); HPSv3 evaluate.py, ranking mode",
            ties="left out",
            weight=_without_ties,
        ),
        Protocol(
            name="rankings_per_prompt",
            definition="1 - discordant pairs / (n choose 2) for each ranking, then the mean over rankings; pairs that "
            "people tied are never discordant, equal scores on others are (upstream breaks them by position)",
            source="HPSv2 evaluation.py (arXiv 2306.09341)",
            ties="counted as right, whatever their scores",
            weight=_each_comparison_once,
        ),
        Protocol(
            name="tie_aware",
            definition="a pair is called a tie if |p0 - p1| <= tau, p the softmax of scale * scores; 1 if the call is "
            "the label, 0.5 if just one of the two is a tie, else 0; tau from 0, 0.1, ..., 1 by validation pairs",
            source="PickScore eval_preference_predictor.py (arXiv 2305.01569)",
            ties="counted: right if the reward calls them a tie too, else half right",
            weight=_all,
            tie_measure="probability",
        ),
        Protocol(
            name="tie_aware_quantiles",
            definition="as tie_aware, but a tie if |s0 - s1| <= tau, tau from the quantiles 0, 0.01, ..., 1 of that "
            "gap on validation pairs: for rewards whose scores have no natural scale",
            source="ours, after PickScore's; no published figure uses it",
            ties="counted: right if the reward calls them a tie too, else half right",
            weight=_all,
            tie_measure="score",
        ),
        Protocol(
            name="ties_dropped",
            definition="share of the pairs that people did not tie with score(preferred) > score(other)",
            source="usual for Pick-a-Pic (arXiv 2305.01569) with rewards that know no ties",
            ties="left out",
            weight=_without_ties,
            pairs_only=True,
        ),
    )
}


def find_protocol(name: str, *, key: str = "protocol") -> Protocol:
    """The protocol of a name; raises ConfigError, which begins with `key`, when there is none."""
    if name not in PROTOCOLS:
        raise ConfigError(f"{key}: unknown protocol {name!r}; {did_you_mean(name, PROTOCOLS)}")
    return PROTOCOLS[name]


def candidates(table: PairTable, scores: torch.Tensor, measure: Measure, scale: float = 1.0) -> list[TieRule]:
    """The tie rules to choose among: tau in 0, 0.1, ..., 1 of the probability, or quantiles of the score gap.

    The quantiles 0, 0.01, ..., 1 are of validation scores [N], with 0 before them: no tie but equal scores.
    """
    if measure == "probability":
        return [TieRule(threshold=step / 10, measure=measure, scale=scale) for step in range(11)]
    winner, loser = scores.double()[table.winner], scores.double()[table.loser]
    steps = np.linspace(0, 1, 101)
    # numpy's quantile takes any number of values, torch's does not.
    found = np.quantile(_gaps(winner, loser, measure, scale).numpy(), steps)
    return [TieRule(threshold=value, measure=measure) for value in sorted({0.0, *found.tolist()})]


def choose_tie_rule(table: PairTable, scores: torch.Tensor, protocol: Protocol, scale: float = 1.0) -> TieRule:
    """The candidate with the highest accuracy on validation pairs; the smallest threshold where several are equal.

    Raises UserError when there is no validation pair.
    """
    assert protocol.tie_measure is not None
    if not len(table):
        raise UserError(f"protocol {protocol.name} finds its tie threshold on validation pairs, but there is none")
    rules = candidates(table, scores, protocol.tie_measure, scale)
    return max(rules, key=lambda rule: (protocol.credits(table, scores, rule).accuracy, -rule.threshold))
