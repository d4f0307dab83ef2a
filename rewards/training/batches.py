"""Deals comparisons in batches of equal shapes: the same batch for the same step, whatever happened before it."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from flowrl.base.errors import UserError
from flowrl.core.seeds import generator
from rewards.data.pairs import PairTable


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """The pairs of a few comparisons, for one forward pass; each sample stands once, however many pairs it is in."""

    samples: torch.Tensor  # [B] int64, rows of the prepared set
    comparison: torch.Tensor  # [B] int64, of each sample: those of one comparison share their noise
    winner: torch.Tensor  # [P] int64, positions in `samples`
    loser: torch.Tensor  # [P] int64
    tie: torch.Tensor  # [P] bool
    weight: torch.Tensor  # [P] float32; over all micro-batches and ranks they sum to the share of the step's batch


class ComparisonBatcher:
    """Deals the comparisons of a pair table, a source of weight w about w times per epoch, in a keyed random order.

    The comparisons of a batch have samples of the same set of shapes, so that all ranks do the same forward passes, and
    each set of shapes ends with a batch that is not full. What a batch weighs (`share`) makes up for both, so that a
    pair weighs the same whatever shapes it has: the gradients of an epoch add up to that of the weighted mean over all
    its pairs, exactly where the comparisons of a set of shapes weigh alike and nearly where they do not (each batch is
    a ratio estimate). An optimizer does more than add gradients: clipping, batch by batch, spares a short one; Adam's
    denominators average the squares of short ones too; weight decay and the schedule count each as a step.

    Raises ValueError when there are no pairs, and UserError when the weight of a source leaves none of it.
    """

    def __init__(
        self,
        pairs: PairTable,
        shape: torch.Tensor,
        *,
        batch_size: int,
        seed: int,
        source_weights: Sequence[float] = (),
    ) -> None:
        if len(pairs) == 0:
            raise ValueError("there are no pairs to train on")
        order = torch.argsort(pairs.comparison, stable=True)
        self.pairs = pairs.select(order)
        counts = torch.unique_consecutive(self.pairs.comparison, return_counts=True)[1]
        self._stop = counts.cumsum(0)
        self._start = self._stop - counts
        self.num_comparisons = len(counts)
        self.batch_size = min(batch_size, self.num_comparisons)
        self._seed = seed
        self._source = self.pairs.source[self._start]
        self._weights = list(source_weights) or [1.0] * len(pairs.sources)
        self._signature = self._signatures(shape)
        self._relative = self._relative_weights()
        self._epoch, self._batches = -1, [torch.empty(0)]
        self._first = [0]  # step of each epoch that was looked at

    def _signatures(self, shape: torch.Tensor) -> torch.Tensor:
        """One number per comparison [C]; equal numbers have samples of the same set of shapes."""
        sets: dict[tuple[int, ...], int] = {}
        winner, loser = shape[self.pairs.winner], shape[self.pairs.loser]
        if torch.equal(winner, loser) and len(torch.unique(winner)) == 1:
            return torch.zeros(self.num_comparisons, dtype=torch.int64)
        numbers = []
        for start, stop in zip(self._start.tolist(), self._stop.tolist(), strict=True):
            found = tuple(torch.unique(torch.cat([winner[start:stop], loser[start:stop]])).tolist())
            numbers.append(sets.setdefault(found, len(sets)))
        return torch.tensor(numbers)

    def _relative_weights(self) -> torch.Tensor:
        """For each set of shapes, what a comparison of it weighs on average over what one of any shapes does, float64.

        Averages are over an epoch. With one set of shapes it is exactly 1.
        """
        times = self._times()
        counts = self._stop - self._start
        rows = torch.repeat_interleave(torch.arange(self.num_comparisons), counts)
        weight_of = torch.bincount(rows, weights=self.pairs.weight.double())
        weights = torch.bincount(self._signature, weights=times * weight_of)
        seen = torch.bincount(self._signature, weights=times)
        return (weights / seen) / (weights.sum() / seen.sum())

    def _times(self) -> torch.Tensor:
        """How often each comparison [C] is dealt in an epoch on average, float64."""
        times = torch.zeros(self.num_comparisons, dtype=torch.float64)
        for source, weight in enumerate(self._weights):
            own = self._source == source
            held = int(own.sum())
            whole, extra = _dealt(held, weight)
            if held and not whole + extra:
                raise UserError(
                    f"source {self.pairs.sources[source]}: its weight {weight:g} leaves none of its {held} comparisons "
                    "in an epoch; raise the weight, or leave the source out"
                )
            times[own] = whole + extra / max(1, held)
        return times

    def share(self, chosen: torch.Tensor) -> float:
        """What a batch of comparisons [<= batch_size] of one set of shapes weighs, where a full one of any shapes
        weighs 1 on average.

        It is the share of a full batch that it holds, times what comparisons of its shapes weigh beside others: those
        with more pairs weigh more, as they would in a batch of all shapes. Full batches of one set of shapes weigh
        alike, whichever comparisons they hold.
        """
        return len(chosen) / self.batch_size * float(self._relative[self._signature[chosen[0]]])

    def _plan(self, number: int) -> list[torch.Tensor]:
        """The batches of an epoch; a shape's comparisons end with a short one."""
        draws = generator(self._seed, "batches", number)
        drawn = []
        for source, weight in enumerate(self._weights):
            members = (self._source == source).nonzero()[:, 0]
            whole, extra = _dealt(len(members), weight)
            drawn += [members] * whole + [members[torch.randperm(len(members), generator=draws)[:extra]]]
        dealt = torch.cat(drawn)
        dealt = dealt[torch.randperm(len(dealt), generator=draws)]
        batches: list[torch.Tensor] = []
        for signature in torch.unique(self._signature[dealt]).tolist():
            batches += dealt[self._signature[dealt] == signature].split(self.batch_size)
        return [batches[i] for i in torch.randperm(len(batches), generator=draws).tolist()]

    def num_steps(self, epochs: int) -> int:
        """How many batches so many epochs hold."""
        while len(self._first) <= epochs:
            self._open(len(self._first) - 1)
        return self._first[epochs]

    def at(self, step: int) -> torch.Tensor:
        """The comparisons [<= batch_size] of a step, of whatever epoch it lies in."""
        while step >= self._first[-1]:
            self._open(len(self._first) - 1)
        epoch = bisect.bisect_right(self._first, step) - 1
        self._open(epoch)
        return self._batches[step - self._first[epoch]]

    def _open(self, epoch: int) -> None:
        """Have the batches of an epoch at hand, and know where the next begins."""
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._plan(epoch)
        if epoch == len(self._first) - 1:
            self._first.append(self._first[-1] + len(self._batches))

    def micro_batches(self, chosen: torch.Tensor, *, size: int, rank: int = 0, world: int = 1) -> list[MicroBatch]:
        """This rank's share of a batch, `size` comparisons at a time.

        All ranks get the same number of micro-batches, ceil(batch_size / (size * world)); where comparisons run out,
        one stands in with weight 0.
        """
        count = math.ceil(self.batch_size / (size * world))
        total = sum(float(self.pairs.weight[self._rows(c)].sum()) for c in chosen.tolist()) / self.share(chosen)
        slots = torch.full((count * size * world,), -1)
        slots[: len(chosen)] = chosen
        mine = slots.reshape(count, size, world)[:, :, rank]
        return [self._micro(row[row >= 0], stand_in=int(chosen[0]), total=total) for row in mine]

    def samples_of(self, chosen: torch.Tensor) -> torch.Tensor:
        """The samples of comparisons, each once."""
        pairs = [self.pairs.select(torch.arange(rows.start, rows.stop)) for rows in map(self._rows, chosen.tolist())]
        return torch.cat([column for one in pairs for column in (one.winner, one.loser)]).unique()

    def _rows(self, comparison: int) -> slice:
        return slice(int(self._start[comparison]), int(self._stop[comparison]))

    def _micro(self, chosen: torch.Tensor, *, stand_in: int, total: float) -> MicroBatch:
        members = chosen.tolist() or [stand_in]
        rows = torch.cat([torch.arange(self._rows(c).start, self._rows(c).stop) for c in members])
        pairs = self.pairs.select(rows)
        both = torch.cat([pairs.winner, pairs.loser])
        # A sample that two comparisons share is scored for each, under the noise of each.
        key = torch.stack([pairs.comparison.repeat(2), both], 1)
        distinct, position = torch.unique(key, dim=0, return_inverse=True)
        winner, loser = position.chunk(2)
        return MicroBatch(
            samples=distinct[:, 1],
            comparison=distinct[:, 0],
            winner=winner,
            loser=loser,
            tie=pairs.tie,
            weight=pairs.weight / total if len(chosen) else torch.zeros(len(pairs)),
        )


def _dealt(held: int, weight: float) -> tuple[int, int]:
    """How often an epoch deals all comparisons of a source that holds so many, and how many of them once more."""
    whole, part = divmod(weight, 1.0)
    return int(whole), round(part * held)
