"""Differences of paired scores: their means, and what their intervals cover."""

from __future__ import annotations

import math

import numpy as np
import pytest

from flowrl.matched.paired import difference, over_prompts, student


def test_a_difference_is_first_minus_second() -> None:
    first = np.array([[1.0, 2.0, 3.0, 4.0], [2.0, 2.0, 2.0, 2.0]])
    second = np.array([[0.0, 2.0, 4.0, 1.0], [1.0, 2.0, 1.0, 1.0]])
    found = difference(first, second)
    assert found.mean == pytest.approx(0.75)
    assert found.by_seed == pytest.approx((0.75, 0.75))
    assert found.ahead == pytest.approx((2 + 0.5 * 2) / 4)  # two prompts ahead, two level over the seeds


def test_pairing_removes_what_prompts_differ_by() -> None:
    generator = np.random.default_rng(0)
    hardness = generator.standard_normal((1, 400))
    noise = 0.1 * generator.standard_normal((1, 400))
    found = difference(hardness + noise + 0.05, hardness)
    assert (found.prompts.high - found.prompts.low) / 2 == pytest.approx(1.96 * 0.1 / math.sqrt(400), rel=0.1)
    assert found.clear


@pytest.mark.parametrize("prompts", [8, 16, 60, 200])
def test_the_interval_over_prompts_covers_the_truth_as_often_as_it_says(prompts: int) -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(500):
        interval = over_prompts(generator.standard_normal(prompts) + 0.3)
        assert interval is not None
        covered += interval.low <= 0.3 <= interval.high
    assert 0.92 <= covered / 500 <= 0.98  # 0.95, and three standard errors of 500 trials


def test_very_few_prompts_say_nothing_of_others() -> None:
    found = difference(np.ones((3, 7)), np.zeros((3, 7)))
    assert (found.prompts, found.both) == (None, None)
    assert not found.clear
    assert not found.settled


@pytest.mark.parametrize("spread_of_seeds", [0.0, 0.1, 0.5])
def test_what_is_called_settled_is_wrong_as_seldom_as_it_says(spread_of_seeds: float) -> None:
    generator = np.random.default_rng(2)
    settled = 0
    for _ in range(500):
        apart = spread_of_seeds * generator.standard_normal((3, 1)) + generator.standard_normal((1, 64))
        apart = apart + 0.5 * generator.standard_normal((3, 64))
        settled += difference(apart, np.zeros_like(apart)).settled
    assert settled / 500 <= 0.08  # 0.05, and three standard errors of 500 trials


def test_the_interval_over_seeds_is_student_s() -> None:
    first = np.array([[1.0], [2.0], [3.0]]) * np.ones((3, 10))
    found = difference(first, np.zeros((3, 10)))
    half = 4.303 * 1.0 / math.sqrt(3)
    for interval in (found.seeds, found.both):  # prompts that do not differ add nothing
        assert interval is not None
        assert (interval.low, interval.high) == pytest.approx((2 - half, 2 + half), abs=1e-3)
    assert found.clear
    assert not found.settled  # three seeds that differ by so much settle nothing
    assert found.ahead == 1


def test_a_single_seed_settles_nothing() -> None:
    found = difference(np.ones((1, 20)), np.zeros((1, 20)))
    assert found.clear
    assert found.seeds is None
    assert not found.settled


def test_seeds_that_agree_settle_it() -> None:
    generator = np.random.default_rng(2)
    found = difference(0.1 + 0.01 * generator.standard_normal((3, 50)), np.zeros((3, 50)))
    assert found.settled


def test_rounding_is_no_difference() -> None:
    scores = np.full((2, 30), 0.1)
    found = difference(scores * (1 + 1e-9), scores)
    assert found.mean == 0
    assert not found.clear
    assert found.ahead == 0.5


@pytest.mark.parametrize(("degrees", "value"), [(1, 12.706), (2, 4.303), (30, 2.042), (40, 2.021), (120, 1.980)])
def test_quantiles_are_those_of_the_tables(degrees: int, value: float) -> None:
    assert student(degrees) == pytest.approx(value, abs=1e-3)


def test_quantiles_between_whole_degrees_are_a_little_above_the_exact_ones() -> None:
    assert 3.55 < student(2.5) < 3.65  # 3.56
    assert student(2) > student(2.01) > student(2.99) > student(3)
    assert student(0.5) == student(1)


def test_scores_that_are_not_paired_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 4\)"):
        difference(np.zeros((2, 3)), np.zeros((2, 4)))
