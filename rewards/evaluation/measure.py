"""From the scores of a benchmark's images to figures: protocols, intervals, categories and differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch

from flowrl.base.errors import UserError
from rewards.evaluation.accuracy import PROTOCOLS, Credits, Protocol, TieRule, choose_tie_rule
from rewards.evaluation.bootstrap import interval, paired_difference, resample
from rewards.evaluation.judged_pairs import JudgedPairs
from rewards.evaluation.result import CategoryFigures, Difference, Figure, ProtocolResult
from rewards.evaluation.score_comparisons import ScoredComparisons


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """How figures are made from scores: of which rewards, and with how many bootstrap draws.

    Example: ``Measurement(labels=("a", "b"), scales=(1.0, 100.0), draws=2000, seed=0, name="hpdv2")``
    """

    labels: tuple[str, ...]
    scales: tuple[float, ...]  # of the scores in the softmax of tie-aware protocols
    draws: int
    seed: int
    name: str  # of the benchmark; its draws are its own

    def measure(
        self, protocol: Protocol, scored: ScoredComparisons, validation: ScoredComparisons | None
    ) -> ProtocolResult:
        """All rewards under one protocol, on the pairs that all of them have scored.

        Raises UserError when there is no pair that it can count, or it needs validation pairs and there are none.
        """
        pairs = scored.comparable
        self._check_can_count(protocol, pairs, scored)
        rules = self._tie_rules(protocol, validation)
        scores = torch.nan_to_num(scored.scores)  # rows without a score are in no comparable pair
        earned = [protocol.credits(pairs.table, row, rule) for row, rule in zip(scores, rules, strict=True)]
        samples = self._samples(pairs, earned)
        counted = earned[0].counted
        return ProtocolResult(
            protocol=protocol.name,
            definition=protocol.definition,
            source=protocol.source,
            num_pairs=int(counted.sum()),
            num_prompts=len(pairs.prompt[counted].unique()),
            num_ties=int(pairs.table.tie.sum()),
            ties=protocol.ties,
            figures=self._figures(earned, samples, rules),
            by_category=self._by_category(pairs, earned, rules),
            differences=tuple(
                Difference(
                    first=self.labels[one],
                    second=self.labels[other],
                    paired=paired_difference(earned[one], earned[other], samples[:, one], samples[:, other]),
                )
                for one, other in combinations(range(len(self.labels)), 2)
            ),
        )

    def _check_can_count(self, protocol: Protocol, pairs: JudgedPairs, scored: ScoredComparisons) -> None:
        if not len(pairs):
            missing = [f"{label} lacks {count}" for label, count in zip(self.labels, scored.unscored, strict=True)]
            raise UserError(
                f"{self.name}: none of its {len(scored.pairs)} pairs has two images that every reward has scored "
                f"({scored.bad_images.count} images cannot be used; of the others {', '.join(missing)}); leave out the "
                "reward that is to blame, or mend the images"
            )
        if protocol.needs_winner and bool(pairs.table.tie.all()):
            counting = [one.name for one in PROTOCOLS.values() if not one.needs_winner]
            raise UserError(
                f"{self.name}: protocol {protocol.name} needs pairs with a winner, but all {len(pairs)} pairs that "
                "every reward has scored are ties; take other sources, or a protocol that counts ties: "
                f"{' or '.join(counting)}"
            )

    def _tie_rules(self, protocol: Protocol, validation: ScoredComparisons | None) -> list[TieRule | None]:
        if protocol.tie_measure is None:
            return [None] * len(self.labels)
        if validation is None:
            raise UserError(f"{self.name}: protocol {protocol.name} needs validation sources for its tie threshold")
        table = validation.comparable.table
        scores = torch.nan_to_num(validation.scores)
        return [choose_tie_rule(table, row, protocol, scale) for row, scale in zip(scores, self.scales, strict=True)]

    def _samples(self, pairs: JudgedPairs, earned: Sequence[Credits]) -> torch.Tensor:
        return resample(pairs.prompt, earned, draws=self.draws, seed=self.seed, name=self.name)

    def _figures(
        self, earned: Sequence[Credits], samples: torch.Tensor, rules: Sequence[TieRule | None]
    ) -> tuple[Figure, ...]:
        return tuple(
            Figure(label=label, accuracy=one.accuracy, interval=interval(column), equal=one.num_equal, tie_rule=rule)
            for label, one, column, rule in zip(self.labels, earned, samples.unbind(1), rules, strict=True)
        )

    def _by_category(
        self, pairs: JudgedPairs, earned: Sequence[Credits], rules: Sequence[TieRule | None]
    ) -> tuple[CategoryFigures, ...]:
        if len(pairs.table.categories) < 2:
            return ()
        found = []
        for index, category in sorted(enumerate(pairs.table.categories), key=lambda one: one[1]):
            mask = pairs.table.category == index
            if not mask.any():
                continue
            own = [one.only(mask) for one in earned]
            figures = self._figures(own, self._samples(pairs, own), rules)
            found.append(CategoryFigures(category=category, num_pairs=int(own[0].counted.sum()), figures=figures))
        return tuple(found)
