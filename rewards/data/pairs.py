"""Preference pairs as columns, over the samples of a prepared set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch


@dataclass(frozen=True, kw_only=True)
class PairTable:
    """M pairs: in each, the winner is preferred to the loser for the same prompt, or the two are tied.

    Example: of two samples the second is preferred: ``PairTable.of(winner=[1], loser=[0])``
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ("winner", "loser", "tie", "weight", "comparison", "source", "category")

    winner: torch.Tensor  # [M] int64, sample
    loser: torch.Tensor  # [M] int64
    tie: torch.Tensor  # [M] bool: neither is preferred
    weight: torch.Tensor  # [M] float32, in the loss
    comparison: torch.Tensor  # [M] int64: pairs of one comparison share noise and are trained on together
    source: torch.Tensor  # [M] int64, index into `sources`
    category: torch.Tensor  # [M] int64, index into `categories`
    sources: tuple[str, ...]
    categories: tuple[str, ...]

    def __post_init__(self) -> None:
        sizes = {name: len(vars(self)[name]) for name in self.COLUMNS}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"all columns of the pairs must have one length, got {sizes}")

    def __len__(self) -> int:
        return len(self.winner)

    @classmethod
    def of(cls, *, winner: list[int], loser: list[int], comparison: list[int] | None = None) -> PairTable:
        """Pairs of one source and category, without ties; each a comparison of its own unless said otherwise."""
        count = len(winner)
        return cls(
            winner=torch.tensor(winner, dtype=torch.int64),
            loser=torch.tensor(loser, dtype=torch.int64),
            tie=torch.zeros(count, dtype=torch.bool),
            weight=torch.ones(count),
            comparison=torch.arange(count) if comparison is None else torch.tensor(comparison),
            source=torch.zeros(count, dtype=torch.int64),
            category=torch.zeros(count, dtype=torch.int64),
            sources=("pairs",),
            categories=("",),
        )

    def select(self, rows: torch.Tensor) -> PairTable:
        """The pairs at `rows` (indices or a mask)."""
        columns = {name: vars(self)[name][rows] for name in self.COLUMNS}
        return PairTable(**columns, sources=self.sources, categories=self.categories)

    def first_comparisons(self, count: int) -> PairTable:
        """The pairs of the first `count` comparisons of each source; 0 = all."""
        if count == 0:
            return self
        kept = torch.zeros(len(self), dtype=torch.bool)
        for source in torch.unique(self.source).tolist():
            own = self.source == source
            kept |= own & torch.isin(self.comparison, torch.unique(self.comparison[own])[:count])
        return self.select(kept)

    def columns(self) -> dict[str, torch.Tensor]:
        """The columns by name, as they are stored."""
        return {name: vars(self)[name].contiguous() for name in self.COLUMNS}
