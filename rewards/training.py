"""What training a reward model on preference pairs needs: losses, batches of pairs, learning rates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from rewards.preference import PreferencePairs


def bradley_terry_loss(winner: torch.Tensor, loser: torch.Tensor) -> torch.Tensor:
    """Mean of -log sigmoid(r_w - r_l) over scores [P] and [P] (arXiv 2606.23626 section 3; Bradley-Terry)."""
    return -F.logsigmoid(winner - loser).mean()


def uncertainty_loss(
    winner: torch.Tensor, loser: torch.Tensor, generator: torch.Generator, *, draws: int = 1000
) -> torch.Tensor:
    """HPSv3's loss for heads [P, 2] of (mu, log sigma): -log sigmoid of a drawn difference, averaged over draws.

    z = (mu_w - mu_l) + sqrt(sigma_w^2 + sigma_l^2) xi with xi standard normal [draws, P] (arXiv 2508.03789).
    """
    difference = winner[:, 0] - loser[:, 0]
    spread = (torch.exp(2 * winner[:, 1]) + torch.exp(2 * loser[:, 1])).sqrt()
    xi = torch.randn(draws, len(winner), generator=generator).to(difference)
    return -F.logsigmoid(difference + spread * xi).mean()


def lr_scale(head_prefixes: tuple[str, ...], backbone_share: float) -> Callable[[str], float]:
    """Learning-rate factors by parameter name: 1 under `head_prefixes`, `backbone_share` elsewhere."""
    return lambda name: 1.0 if name.startswith(head_prefixes) else backbone_share


@dataclass(frozen=True, kw_only=True)
class PairBatch:
    """The pairs of a few groups; each sample stands once, however many pairs it is in."""

    samples: torch.Tensor  # [B] int64, rows of the sample table
    group: torch.Tensor  # [B] int64 in [0, groups): samples of one group share their noise
    num_groups: int
    winner: torch.Tensor  # [P] int64, positions in `samples`
    loser: torch.Tensor  # [P] int64


class PairBatcher:
    """Deals the groups of a pair table in batches: each group once per epoch, in an order drawn from (seed, epoch)."""

    def __init__(self, pairs: PreferencePairs, *, groups_per_batch: int, seed: int) -> None:
        if len(pairs) == 0:
            raise ValueError("there are no pairs to train on")
        order = torch.argsort(pairs.group, stable=True)
        self._winner, self._loser = pairs.winner[order], pairs.loser[order]
        counts = torch.unique_consecutive(pairs.group[order], return_counts=True)[1]
        self._stop = counts.cumsum(0)
        self._start = self._stop - counts
        self.num_groups = len(counts)
        self._per_batch = min(groups_per_batch, self.num_groups)
        self.batches_per_epoch = self.num_groups // self._per_batch
        self._seed = seed
        self._epoch = -1

    def at(self, step: int) -> PairBatch:
        """The batch of a step; the same for the same step, whatever was asked before."""
        epoch, index = divmod(step, self.batches_per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
            self._order = torch.randperm(self.num_groups, generator=generator)
            self._epoch = epoch
        chosen = self._order[index * self._per_batch : (index + 1) * self._per_batch].tolist()
        rows = [torch.arange(int(self._start[g]), int(self._stop[g])) for g in chosen]
        number = torch.cat([torch.full((len(part),), i) for i, part in enumerate(rows)])
        flat = torch.cat(rows)
        both = torch.cat([self._winner[flat], self._loser[flat]])
        samples, position = torch.unique(both, return_inverse=True)
        group = torch.zeros(len(samples), dtype=torch.int64).index_put((position,), torch.cat([number, number]))
        winner, loser = position.chunk(2)
        return PairBatch(samples=samples, group=group, num_groups=len(chosen), winner=winner, loser=loser)
