"""Dealing comparisons: each once per epoch, by key alone, one set of shapes at a time, split without loss."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import chain

import pytest
import torch

from flowrl.base.errors import UserError
from rewards.data.pairs import PairTable
from rewards.training.batches import ComparisonBatcher, MicroBatch
from rewards.training.losses import bradley_terry_loss


def table(num: int, *, sources: tuple[str, ...] = ("a",)) -> PairTable:
    """Comparisons of three samples and three pairs each, their sources in turn; samples 3c to 3c + 2 are those of c."""
    winner = [3 * c + w for c in range(num) for w in (0, 0, 1)]
    loser = [3 * c + r for c in range(num) for r in (1, 2, 2)]
    comparison = [c for c in range(num) for _ in range(3)]
    pairs = PairTable.of(winner=winner, loser=loser, comparison=comparison)
    weight = 1 + 0.25 * torch.arange(3 * num)
    return replace(pairs, source=pairs.comparison % len(sources), weight=weight, sources=sources)


def dealer(
    num: int = 13,
    *,
    batch_size: int = 4,
    seed: int = 0,
    shape: torch.Tensor | None = None,
    weights: tuple[float, ...] = (),
) -> ComparisonBatcher:
    sources = tuple("abc"[: len(weights) or 1])
    shapes = torch.zeros(3 * num, dtype=torch.int64) if shape is None else shape
    return ComparisonBatcher(
        table(num, sources=sources), shapes, batch_size=batch_size, seed=seed, source_weights=weights
    )


def epoch(batcher: ComparisonBatcher, number: int) -> list[list[int]]:
    steps = range(batcher.num_steps(number), batcher.num_steps(number + 1))
    return [batcher.at(step).tolist() for step in steps]


def mixed_shapes(num: int) -> torch.Tensor:
    """Comparisons of the first shape, of the second, and with samples of both."""
    return torch.tensor([[0, 0, 0], [1, 1, 1], [0, 1, 1], [1, 0, 0]])[torch.arange(num) % 4].flatten()


def test_every_comparison_comes_once_in_each_epoch() -> None:
    batcher = dealer()
    assert batcher.num_steps(3) == 12
    orders = [epoch(batcher, number) for number in range(3)]
    for batches in orders:
        assert sorted(len(batch) for batch in batches) == [1, 4, 4, 4]
        assert sorted(chain(*batches)) == list(range(13))
    assert orders[0] != orders[1] != orders[2]


def test_weights_of_sources_say_how_often_they_come() -> None:
    batcher = dealer(30, weights=(0.5, 2.0, 1.5))
    for number in range(3):
        seen = Counter(chain(*epoch(batcher, number)))
        by_source = [[seen[c] for c in range(30) if c % 3 == source] for source in range(3)]
        assert Counter(by_source[0]) == {1: 5, 0: 5}
        assert by_source[1] == [2] * 10
        assert Counter(by_source[2]) == {2: 5, 1: 5}
    halves = [{c for batch in epoch(batcher, number) for c in batch if c % 3 == 0} for number in range(6)]
    assert len(set(map(frozenset, halves))) > 1  # another half each time


def test_the_batch_of_a_step_depends_on_the_step_alone() -> None:
    asked_in_order = dealer()
    expected = [asked_in_order.at(step).tolist() for step in range(20)]
    other = dealer()
    for step in (17, 3, 3, 0, 19, 8, 4, 11, 12):
        assert other.at(step).tolist() == expected[step]
    assert other.num_steps(5) == 20
    resumed = dealer()
    assert resumed.at(19).tolist() == expected[19]
    assert [dealer(seed=1).at(step).tolist() for step in range(4)] != expected[:4]


def test_the_order_of_the_rows_of_the_table_does_not_matter_to_the_members() -> None:
    pairs = table(5)
    mixed = pairs.select(torch.randperm(len(pairs), generator=torch.Generator().manual_seed(1)))
    shape = torch.zeros(15, dtype=torch.int64)
    found = ComparisonBatcher(mixed, shape, batch_size=2, seed=0)
    for batch in epoch(found, 0):
        for micro in found.micro_batches(torch.tensor(batch), size=1):
            number = int(micro.comparison[0])
            winner, loser = micro.samples[micro.winner].tolist(), micro.samples[micro.loser].tolist()
            pairs_of = set(zip(winner, loser, strict=True))
            assert pairs_of == {(3 * number + w, 3 * number + r) for w, r in ((0, 1), (0, 2), (1, 2))}


def test_a_batch_holds_one_set_of_shapes() -> None:
    shape = mixed_shapes(26)
    batcher = dealer(26, shape=shape)
    batches = epoch(batcher, 0)
    assert sorted(chain(*batches)) == list(range(26))
    kinds = set()
    for batch in batches:
        sets = {frozenset(shape[3 * c : 3 * c + 3].tolist()) for c in batch}
        assert len(sets) == 1
        kinds |= sets
    assert kinds == {frozenset({0}), frozenset({1}), frozenset({0, 1})}


def contents(batcher: ComparisonBatcher, micros: list[MicroBatch]) -> Counter[tuple[int, int, float]]:
    """Pairs as (winner, loser, weight), those of weight 0 left out."""
    return Counter(
        (int(micro.samples[w]), int(micro.samples[r]), round(float(weight), 6))
        for micro in micros
        for w, r, weight in zip(micro.winner, micro.loser, micro.weight, strict=True)
        if weight > 0
    )


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_ranks_and_micro_batches_share_a_batch_without_loss(size: int, world: int) -> None:
    batcher = dealer(13, batch_size=5)
    for step in range(batcher.num_steps(1)):
        chosen = batcher.at(step)
        whole = contents(batcher, batcher.micro_batches(chosen, size=13))
        assert len(whole) == 3 * len(chosen)
        shares = [batcher.micro_batches(chosen, size=size, rank=rank, world=world) for rank in range(world)]
        assert len({len(share) for share in shares}) == 1
        assert len(shares[0]) == -(-5 // (size * world))
        parts = [micro for share in shares for micro in share]
        assert contents(batcher, parts) == whole
        assert sum(float(micro.weight.sum()) for micro in parts) == pytest.approx(len(chosen) / 5, abs=1e-6)
        assert all(len(torch.unique(micro.comparison)) <= size for micro in parts)


def test_the_weights_of_a_full_batch_of_the_only_shape_are_those_of_its_pairs_over_their_sum() -> None:
    batcher = dealer(13, batch_size=5)
    for chosen in map(torch.tensor, epoch(batcher, 0)):
        (micro,) = batcher.micro_batches(chosen, size=5)
        assert micro.comparison.unique().tolist() == sorted(chosen.tolist())
        weight = torch.cat([1 + 0.25 * torch.arange(3 * c, 3 * c + 3) for c in chosen.tolist()])
        if len(chosen) == 5:
            assert torch.equal(micro.weight, weight / weight.sum())
        torch.testing.assert_close(micro.weight, weight / weight.sum() * len(chosen) / 5)


def uneven() -> tuple[PairTable, torch.Tensor]:
    """41 comparisons: 33 pairs in the first shape, five rankings of three in the second, three heavy pairs in a third;
    of two sources that differ in shapes and in how often they are seen.
    """
    winner, loser, comparison, shape, weight = [], [], [], [], []
    for number in range(41):
        kind = 0 if number < 33 else 1 if number < 38 else 2
        first = len(shape)
        shape += [kind] * (3 if kind == 1 else 2)
        for w, r in ((0, 1), (0, 2), (1, 2)) if kind == 1 else ((0, 1),):
            winner.append(first + w)
            loser.append(first + r)
            comparison.append(number)
            weight.append(4.0 if kind == 2 else 1.0)
    pairs = PairTable.of(winner=winner, loser=loser, comparison=comparison)
    source = (pairs.comparison % 4 == 0).long()
    return replace(pairs, source=source, weight=torch.tensor(weight), sources=("a", "b")), torch.tensor(shape)


@pytest.mark.parametrize("weights", [(), (1.0, 2.0)])
@pytest.mark.parametrize("batch_size", [8, 10])
def test_the_gradients_of_an_epoch_of_many_shapes_are_that_of_the_weighted_mean_over_its_pairs(
    weights: tuple[float, ...], batch_size: int
) -> None:
    pairs, shape = uneven()
    draws = torch.Generator().manual_seed(0)
    samples = torch.randn(len(shape), 4, generator=draws, dtype=torch.float64)
    model = torch.randn(4, generator=draws, dtype=torch.float64).requires_grad_()

    def gradient(winner: torch.Tensor, loser: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        losses = bradley_terry_loss(samples[winner] @ model, samples[loser] @ model)
        return torch.autograd.grad((losses * weight).sum(), model)[0]

    batcher = ComparisonBatcher(pairs, shape, batch_size=batch_size, seed=0, source_weights=weights)
    times = torch.tensor(weights or (1.0, 1.0))[pairs.source]
    total = times * pairs.weight / (times * pairs.weight).sum()
    num_dealt = sum(map(len, epoch(batcher, 0)))
    expected = num_dealt / batch_size * gradient(pairs.winner, pairs.loser, total)
    found, shares = torch.zeros(4, dtype=torch.float64), []
    for chosen in map(torch.tensor, epoch(batcher, 0)):
        shares.append(batcher.share(chosen))
        (micro,) = batcher.micro_batches(chosen, size=batch_size)
        found += gradient(micro.samples[micro.winner], micro.samples[micro.loser], micro.weight)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    assert sum(shares) == pytest.approx(num_dealt / batch_size)
    assert max(shares) / min(shares) > 3


def test_a_stand_in_weighs_nothing_and_has_the_batchs_own_shape() -> None:
    shape = mixed_shapes(26)
    batcher = dealer(26, shape=shape, batch_size=4)
    short = next(batch for batch in epoch(batcher, 0) if len(batch) < 4)
    micros = batcher.micro_batches(torch.tensor(short), size=1)
    assert [float(micro.weight.sum()) > 0 for micro in micros] == [n < len(short) for n in range(4)]
    for micro in micros:
        assert len(micro.samples) == 3
        assert set(shape[micro.samples].tolist()) == set(shape[torch.tensor(short[0]) * 3 + torch.arange(3)].tolist())
    assert torch.equal(micros[-1].weight, torch.zeros(3))


def test_a_sample_that_two_comparisons_share_is_scored_for_each() -> None:
    pairs = PairTable.of(winner=[0, 0, 1], loser=[1, 2, 2], comparison=[0, 0, 1])
    batcher = ComparisonBatcher(pairs, torch.zeros(3, dtype=torch.int64), batch_size=2, seed=0)
    (micro,) = batcher.micro_batches(torch.tensor([0, 1]), size=2)
    rows = list(zip(micro.comparison.tolist(), micro.samples.tolist(), strict=True))
    assert rows == [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2)]
    judged = [(rows[w], rows[r]) for w, r in zip(micro.winner.tolist(), micro.loser.tolist(), strict=True)]
    assert judged == [((0, 0), (0, 1)), ((0, 0), (0, 2)), ((1, 1), (1, 2))]


def test_ties_keep_their_mark() -> None:
    pairs = replace(PairTable.of(winner=[0, 2], loser=[1, 3]), tie=torch.tensor([False, True]))
    batcher = ComparisonBatcher(pairs, torch.zeros(4, dtype=torch.int64), batch_size=2, seed=0)
    (micro,) = batcher.micro_batches(torch.tensor([1, 0]), size=2)
    assert [bool(tie) for tie in micro.tie] == [True, False]
    assert micro.samples[micro.winner].tolist() == [2, 0]


def test_fewer_comparisons_than_a_batch_make_one_step_an_epoch() -> None:
    batcher = dealer(3, batch_size=64)
    assert batcher.num_steps(2) == 2
    chosen = batcher.at(1)
    assert sorted(chosen.tolist()) == [0, 1, 2]
    assert batcher.batch_size == 3
    assert len(batcher.micro_batches(chosen, size=2)) == 2


def test_no_pairs_are_refused() -> None:
    nothing = PairTable.of(winner=[], loser=[])
    with pytest.raises(ValueError, match=r"no pairs to train on"):
        ComparisonBatcher(nothing, torch.zeros(0, dtype=torch.int64), batch_size=1, seed=0)


def test_a_weight_that_leaves_nothing_of_a_source_is_refused() -> None:
    assert dealer(4, weights=(1.0, 0.3)).num_steps(1) == 1  # one of two comparisons is left
    with pytest.raises(
        UserError, match=r"source b: its weight 0.2 leaves none of its 2 comparisons in an epoch; raise"
    ):
        dealer(4, weights=(1.0, 0.2))
