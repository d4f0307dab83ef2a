"""The protocols of accuracy, on examples worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from flowrl.base.errors import UserError
from rewards.data.comparison import Comparison, ImageRef
from rewards.data.pairs import PairTable
from rewards.evaluation.accuracy import PROTOCOLS, TieRule, candidates, choose_tie_rule, find_protocol
from rewards.evaluation.judged_pairs import JudgedPairs, JudgedPairsBuilder


def table_of(*rankings: tuple[float, ...]) -> PairTable:
    """Rankings over consecutive rows of a score table, each of a prompt of its own."""
    builder, row = JudgedPairsBuilder(), 0
    for number, ranks in enumerate(rankings):
        images = tuple(ImageRef(path=f"{number}-{place}.png") for place in range(len(ranks)))
        comparison = Comparison(prompt=f"prompt {number}", images=images, ranks=tuple(map(float, ranks)), origin="here")
        builder.add(comparison, range(row, row + len(ranks)))
        row += len(ranks)
    return builder.build().table


def accuracy(name: str, table: PairTable, scores: list[float], rule: TieRule | None = None) -> float:
    return PROTOCOLS[name].credits(table, torch.tensor(scores), rule).accuracy


PAIRS = table_of((0, 1), (1, 0), (0, 1), (0, 0))
PAIR_SCORES = [2.0, 1.0, 5.0, 3.0, 4.0, 4.0, 1.0, 9.0]  # right, wrong, equal scores, a tie of people


def test_a_ranking_becomes_its_pairs() -> None:
    table = table_of((2, 0, 2))
    assert list(zip(table.winner.tolist(), table.loser.tolist(), strict=True)) == [(1, 0), (0, 2), (1, 2)]
    assert table.tie.tolist() == [False, True, False]
    assert table.comparison.tolist() == [0, 0, 0]


def test_pairs_of_the_same_images_are_counted_by_whether_they_agree() -> None:
    def found(winner: list[int], loser: list[int], ties: tuple[int, ...] = ()) -> tuple[int, int]:
        table = PairTable.of(winner=winner, loser=loser)
        table.tie[list(ties)] = True
        seen = JudgedPairs(table=table, prompt=torch.zeros(len(table), dtype=torch.int64)).recurrences
        return seen.same_label, seen.other_label

    assert found([0, 1, 0], [1, 0, 1]) == (2, 3)  # one is both repeated and contradicted
    assert found([0, 0, 2], [1, 2, 1]) == (0, 0)  # the same images in other pairs
    assert found([4, 5, 5, 7], [5, 4, 4, 8]) == (2, 3)
    assert found([0, 1], [1, 0], ties=(0, 1)) == (2, 0)  # a tie has no order
    assert found([0, 1, 0], [1, 0, 1], ties=(1,)) == (2, 3)
    assert found([], []) == (0, 0)


def test_strict_pairs_count_equal_scores_as_wrong_and_leave_ties_out() -> None:
    earned = PROTOCOLS["pairs"].credits(PAIRS, torch.tensor(PAIR_SCORES))
    assert earned.accuracy == pytest.approx(1 / 3)
    assert earned.weight.tolist() == [1, 1, 1, 0]
    assert earned.num_equal == 1
    assert accuracy("ties_dropped", PAIRS, PAIR_SCORES) == pytest.approx(1 / 3)


def test_pairs_refuse_a_ranking() -> None:
    with pytest.raises(
        UserError, match=r"protocol pairs counts pairs, but there is a comparison of more than two images; use r"
    ):
        accuracy("pairs", table_of((0, 1, 2)), [1, 2, 3])


def test_pooled_and_per_prompt_differ_where_rankings_have_different_lengths() -> None:
    table = table_of((0, 1, 2, 3), (0, 1))
    # The first ranking has one discordant pair of six, the second is the wrong way round.
    scores = [4.0, 2.0, 3.0, 1.0, 0.0, 1.0]
    assert accuracy("rankings_pooled", table, scores) == pytest.approx(5 / 7)
    assert accuracy("rankings_per_prompt", table, scores) == pytest.approx((5 / 6 + 0) / 2)


def test_ties_of_people_are_left_out_when_pooled_and_never_discordant_per_prompt() -> None:
    table = table_of((0, 1, 1))
    scores = [3.0, 5.0, 1.0]  # wrong, tied by people, right
    assert accuracy("rankings_pooled", table, scores) == pytest.approx(1 / 2)
    assert accuracy("rankings_per_prompt", table, scores) == pytest.approx(2 / 3)


def test_a_reward_that_says_the_same_of_all_images_earns_nothing() -> None:
    table = table_of((0, 1, 2), (1, 0))
    for name in ("rankings_pooled", "rankings_per_prompt"):
        earned = PROTOCOLS[name].credits(table, torch.zeros(5))
        assert earned.accuracy == 0
        assert earned.num_equal == 4


def test_per_prompt_is_hpdv2s_inversion_score() -> None:
    generator = torch.Generator().manual_seed(3)
    rankings = [torch.randint(0, 4, (n,), generator=generator).tolist() for n in (4, 9, 5, 2)]
    scores = torch.rand(20, generator=generator).tolist()
    expected, row = [], 0
    for ranks in rankings:
        own = scores[row : row + len(ranks)]
        place = sorted(range(len(own)), key=lambda index: -own[index])
        predicted = [place.index(index) for index in range(len(own))]
        n, discordant = len(own), 0
        for i in range(n):
            for j in range(i):
                discordant += (ranks[i] - ranks[j]) * (predicted[i] - predicted[j]) < 0
        expected.append(1 - discordant / math.comb(n, 2))
        row += n
    table = table_of(*map(tuple, rankings))
    assert accuracy("rankings_per_prompt", table, scores) == pytest.approx(sum(expected) / 4)


def test_a_tie_aware_credit_is_one_a_half_or_nothing() -> None:
    table = table_of((0, 1), (0, 1), (0, 1), (0, 0), (0, 0))
    # |p0 - p1| of scores d apart is tanh(d / 2): 0.5 is 1.0986 apart.
    scores = [2.0, 0.0, 0.0, 2.0, 1.0, 0.0, 1.0, 0.0, 3.0, 0.0]
    rule = TieRule(threshold=0.5, measure="probability")
    earned = PROTOCOLS["tie_aware"].credits(table, torch.tensor(scores), rule)
    assert earned.credit.tolist() == [1, 0, 0.5, 1, 0.5]
    assert earned.accuracy == pytest.approx(0.6)
    assert earned.weight.tolist() == [1] * 5


def test_the_probability_gap_is_that_of_a_softmax_of_the_scaled_scores() -> None:
    left, right = torch.tensor([21.3, -1.0], dtype=torch.float64), torch.tensor([20.9, 2.0], dtype=torch.float64)
    both = torch.softmax(0.7 * torch.stack([left, right]), dim=0)
    gaps = TieRule(threshold=0.1, measure="probability", scale=0.7).gaps(left, right)
    torch.testing.assert_close(gaps, (both[0] - both[1]).abs())


def test_a_gap_that_equals_the_threshold_is_a_tie() -> None:
    table = table_of((0, 0), (0, 1))
    assert accuracy("tie_aware", table, [1, 1, 1, 1], TieRule(threshold=0.0, measure="probability")) == 0.75
    assert accuracy("tie_aware_quantiles", table, [3, 1, 2, 0], TieRule(threshold=2.0, measure="score")) == 0.75


def test_the_threshold_that_is_best_on_validation_is_chosen() -> None:
    # Ties of people lie within 0.3 of each other in probability, all else beyond 0.6.
    close, far = 2 * math.atanh(0.25), 2 * math.atanh(0.65)
    table = table_of((0, 0), (0, 0), (0, 1), (1, 0))
    scores = [close, 0.0, 0.0, close, far, 0.0, 0.0, far]
    rule = choose_tie_rule(table, torch.tensor(scores), PROTOCOLS["tie_aware"])
    assert rule == TieRule(threshold=0.3, measure="probability")  # 0.3 to 0.6 are equally good
    assert accuracy("tie_aware", table, scores, rule) == 1


def test_scores_without_a_scale_find_their_threshold_among_quantiles() -> None:
    table = table_of((0, 0), (0, 0), (0, 1), (1, 0))
    scores = torch.tensor([1e-4, 0.0, 0.0, 2e-4, 1e-3, 0.0, 0.0, 3e-3])
    fixed = choose_tie_rule(table, scores, PROTOCOLS["tie_aware"])
    assert PROTOCOLS["tie_aware"].credits(table, scores, fixed).accuracy == 0.75  # 0 calls no tie, 0.1 calls all
    rule = choose_tie_rule(table, scores, PROTOCOLS["tie_aware_quantiles"])
    assert 2e-4 <= rule.threshold < 1e-3
    assert PROTOCOLS["tie_aware_quantiles"].credits(table, scores, rule).accuracy == 1


def test_the_published_grid_is_in_tenths() -> None:
    grid = candidates(PAIRS, torch.tensor(PAIR_SCORES), "probability", 2.0)
    assert [rule.threshold for rule in grid] == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert {rule.scale for rule in grid} == {2.0}


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="accuracy needs finite scores"):
        accuracy("pairs", PAIRS, [math.nan] * 8)
    with pytest.raises(ValueError, match="protocol tie_aware needs a tie rule"):
        accuracy("tie_aware", PAIRS, PAIR_SCORES)
    with pytest.raises(ValueError, match="protocol pairs has no tie rule"):
        accuracy("pairs", PAIRS, PAIR_SCORES, TieRule(threshold=0, measure="score"))
    with pytest.raises(UserError, match="finds its tie threshold on validation pairs, but there is none"):
        choose_tie_rule(table_of(), torch.zeros(0), PROTOCOLS["tie_aware"])
    with pytest.raises(UserError, match=r"benchmarks\[0\]: unknown protocol 'pair'; did you mean 'pairs'\?"):
        find_protocol("pair", key="benchmarks[0]")


@pytest.mark.parametrize("name", ["pairs", "rankings_pooled", "rankings_per_prompt", "ties_dropped"])
def test_nothing_to_count_is_not_a_number(name: str) -> None:
    assert math.isnan(accuracy(name, table_of(), []))
