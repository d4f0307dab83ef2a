"""Preference pairs, and how often a reward agrees with them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class PreferencePairs:
    """M pairs over a table of samples: in each, the winner is preferred to the loser for the same prompt.

    Example: two samples of one prompt, the second preferred:
    ``PreferencePairs(winner=torch.tensor([1]), loser=torch.tensor([0]), group=torch.tensor([0]),
    kind=torch.tensor([0]), part=torch.tensor([0]), kinds=("policy",), parts=("shape",))``
    """

    winner: torch.Tensor  # [M] int64, row of the sample table
    loser: torch.Tensor  # [M] int64
    group: torch.Tensor  # [M] int64; pairs of one group share their prompt and are trained on together
    kind: torch.Tensor  # [M] int64, index into `kinds`: where the pair comes from
    part: torch.Tensor  # [M] int64, index into `parts`: what the two differ in most
    kinds: tuple[str, ...]
    parts: tuple[str, ...]

    def __post_init__(self) -> None:
        sizes = {name: len(getattr(self, name)) for name in ("winner", "loser", "group", "kind", "part")}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"all columns of the pairs must have one length, got {sizes}")

    def __len__(self) -> int:
        return len(self.winner)

    def select(self, rows: torch.Tensor) -> PreferencePairs:
        """The pairs at `rows` (indices or a mask)."""
        return PreferencePairs(
            winner=self.winner[rows],
            loser=self.loser[rows],
            group=self.group[rows],
            kind=self.kind[rows],
            part=self.part[rows],
            kinds=self.kinds,
            parts=self.parts,
        )


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How many of `total` pairs a reward orders as labelled; equal scores count as wrong."""

    correct: int
    total: int

    @property
    def share(self) -> float:
        """The accuracy in [0, 1]; NaN without pairs."""
        return self.correct / self.total if self.total else math.nan

    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the share, as if the pairs were independent; (0, 1) without pairs."""
        if self.total == 0:
            return 0.0, 1.0
        z, n, p = 1.959964, self.total, self.share
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True, kw_only=True)
class AccuracyReport:
    """Agreement over all pairs, by kind, and within each kind by the part that differs most."""

    overall: Agreement
    by_kind: dict[str, Agreement]
    by_part: dict[str, dict[str, Agreement]]  # kind -> part -> agreement

    def shares(self) -> dict[str, float]:
        """Flat, rounded accuracies for a record: "all", KIND, KIND/PART."""
        flat = {"all": self.overall.share}
        for kind, agreement in self.by_kind.items():
            flat[kind] = agreement.share
            flat |= {f"{kind}/{part}": found.share for part, found in self.by_part[kind].items()}
        return {name: round(share, 4) for name, share in flat.items()}


def accuracy(scores: torch.Tensor, pairs: PreferencePairs) -> AccuracyReport:
    """Pairwise accuracy of scores [N], one per row of the sample table; raises ValueError on a score not finite."""
    needed = torch.cat([pairs.winner, pairs.loser])
    if not torch.isfinite(scores[needed]).all():
        bad = int((~torch.isfinite(scores[needed])).sum())
        raise ValueError(f"accuracy needs finite scores, got {bad} that are not among {len(needed)}")
    right = scores[pairs.winner] > scores[pairs.loser]

    def count(mask: torch.Tensor) -> Agreement:
        return Agreement(correct=int(right[mask].sum()), total=int(mask.sum()))

    by_kind, by_part = {}, {}
    for k, kind in enumerate(pairs.kinds):
        mask = pairs.kind == k
        if not mask.any():
            continue
        by_kind[kind] = count(mask)
        parts = {part: count(mask & (pairs.part == p)) for p, part in enumerate(pairs.parts)}
        by_part[kind] = {part: found for part, found in parts.items() if found.total}
    return AccuracyReport(overall=count(torch.ones(len(pairs), dtype=torch.bool)), by_kind=by_kind, by_part=by_part)
