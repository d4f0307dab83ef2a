"""From comparisons that come one by one to columns of pairs: what the protocols count over."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rewards.data.comparison import Comparison, pairs_of
from rewards.data.pairs import PairTable


@dataclass(frozen=True, kw_only=True)
class Recurrences:
    """Pairs of the same prompt and the same two images as another pair, in whichever order; one may be in both counts.

    Example: of A > B, B > A and A > B again: ``Recurrences(same_label=2, other_label=3)``
    """

    same_label: int  # pairs that another repeats
    other_label: int  # pairs that another contradicts; a tie is a label of its own


@dataclass(frozen=True, kw_only=True)
class JudgedPairs:
    """The pairs that people judged, over the rows of a score table, and the prompt of each.

    Example: one pair: ``JudgedPairs(table=PairTable.of(winner=[0], loser=[1]), prompt=torch.tensor([0]))``
    """

    table: PairTable
    prompt: torch.Tensor  # [M] int64, the unit of resampling

    @property
    def recurrences(self) -> Recurrences:
        """How many of the pairs have the same two images as another of them."""
        winner, loser, tie = self.table.winner, self.table.loser, self.table.tie
        images = torch.stack([torch.minimum(winner, loser), torch.maximum(winner, loser)], 1)
        label = torch.where(tie, 2, (winner < loser).long())
        alike = _group_sizes(torch.cat([images, label[:, None]], 1))
        return Recurrences(same_label=int((alike > 1).sum()), other_label=int((_group_sizes(images) > alike).sum()))

    def __len__(self) -> int:
        return len(self.table)

    def select(self, rows: torch.Tensor) -> JudgedPairs:
        """The pairs at `rows` (indices or a mask)."""
        return JudgedPairs(table=self.table.select(rows), prompt=self.prompt[rows])


def _group_sizes(rows: torch.Tensor) -> torch.Tensor:
    """For each row of [M, K], how many rows are equal to it: [M]."""
    _, group, counts = rows.unique(dim=0, return_inverse=True, return_counts=True)
    return counts[group]


class JudgedPairsBuilder:
    """Collects the pairs of comparisons; keeps numbers, and each prompt and category once.

    A ranking of n images is its n (n - 1) / 2 pairs.
    """

    def __init__(self) -> None:
        self._numbers = array("q")  # six for each pair
        self._prompts: dict[str, int] = {}
        self._categories: dict[str, int] = {}
        self.num_comparisons = 0

    def add(self, comparison: Comparison, rows: Sequence[int]) -> None:
        """Add the pairs of one comparison whose images stand at `rows` of the score table."""
        place = (
            self.num_comparisons,
            self._prompts.setdefault(comparison.prompt, len(self._prompts)),
            self._categories.setdefault(comparison.category, len(self._categories)),
        )
        for pair in pairs_of(comparison):
            self._numbers.extend((rows[pair.winner], rows[pair.loser], int(pair.is_tie), *place))
        self.num_comparisons += 1

    def build(self) -> JudgedPairs:
        """The pairs of all that was added."""
        columns = torch.from_numpy(np.array(self._numbers, dtype=np.int64)).reshape(-1, 6).unbind(1)
        winner, loser, tie, comparison, prompt, category = (column.contiguous() for column in columns)
        table = PairTable(
            winner=winner,
            loser=loser,
            tie=tie.bool(),
            weight=torch.ones(len(winner)),
            comparison=comparison,
            source=torch.zeros_like(winner),
            category=category,
            sources=("",),
            categories=tuple(self._categories),
        )
        return JudgedPairs(table=table, prompt=prompt)
