"""The weighted sum of several rewards: hand examples and what must never happen to them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from flowrl.core.advantages import group_advantages
from flowrl.core.reward_sum import Term, group_z_scores, unnormalised_sum, weighted_sum

NAN = float("nan")


def test_hand_example_of_two_published_scalings() -> None:
    scores = {"hpsv3": torch.tensor([10.0, 12.0]), "image_reward": torch.tensor([-2.0, 0.5])}
    terms = {"hpsv3": Term(scale=0.1), "image_reward": Term(weight=2.0, shift=2.0, scale=0.25)}
    assert weighted_sum(scores, terms).tolist() == pytest.approx([1.0 + 2 * 0.0, 1.2 + 2 * 0.625])


def test_hand_example_of_the_sum_before_normalisation() -> None:
    scores = {"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([10.0, 20.0]), "watched": torch.tensor([NAN, NAN])}
    terms = {"a": Term(weight=2.0, shift=1.0, normalise="group"), "b": Term(weight=-1.0, scale=0.1)}
    assert unnormalised_sum(scores, terms).tolist() == [2 * 2.0 - 1.0, 2 * 4.0 - 2.0]
    assert weighted_sum(scores, terms).tolist() == pytest.approx([-2.0 - 1.0, 2.0 - 2.0])


def test_hand_example_of_z_scores() -> None:
    found = group_z_scores(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    spread = (14 / 4) ** 0.5  # deviations -2, -1, 0, 3
    assert found.tolist() == pytest.approx([-2 / spread, -1 / spread, 0, 3 / spread], rel=1e-6)
    assert found.dtype == torch.float32


def test_normalised_rewards_are_weighted_after_their_z_scores() -> None:
    scores = {"wide": torch.tensor([0.0, 100.0]), "narrow": torch.tensor([0.02, 0.01])}
    terms = {"wide": Term(weight=0.5, normalise="group"), "narrow": Term(weight=2.0, normalise="group")}
    assert weighted_sum(scores, terms).tolist() == pytest.approx([-0.5 + 2, 0.5 - 2], rel=1e-5)


def test_a_reward_without_a_term_takes_no_part() -> None:
    scores = {"trained": torch.tensor([1.0, 2.0]), "watched": torch.tensor([NAN, 5.0])}
    assert weighted_sum(scores, {"trained": Term()}).tolist() == [1.0, 2.0]


def test_one_reward_as_it_is_keeps_every_bit() -> None:
    scores = torch.randn(16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(weighted_sum({"one": scores}, {"one": Term()}), scores)


def test_a_negative_scale_turns_z_scores_round() -> None:
    scores = torch.tensor([3.0, 1.0, 2.0])
    turned = weighted_sum({"one": scores}, {"one": Term(scale=-7.0, normalise="group")})
    assert torch.allclose(turned, -group_z_scores(scores))


@pytest.mark.parametrize("value", [0.0, 0.1, -3e7])
def test_a_group_of_equal_scores_is_exactly_zero(value: float) -> None:
    assert torch.equal(group_z_scores(torch.full((7,), value)), torch.zeros(7))
    assert torch.equal(group_z_scores(torch.tensor([value, NAN, value]))[[0, 2]], torch.zeros(2))


def test_what_is_not_finite_takes_no_part_and_gets_no_score() -> None:
    found = group_z_scores(torch.tensor([1.0, NAN, 3.0, math.inf]))
    assert found[[0, 2]].tolist() == pytest.approx([-1, 1])
    assert found[[1, 3]].isnan().all()
    assert group_z_scores(torch.full((3,), NAN)).isnan().all()
    assert group_z_scores(torch.empty(0)).shape == (0,)


def test_a_failure_of_one_reward_leaves_a_sample_without_total() -> None:
    scores = {"one": torch.tensor([1.0, NAN, 3.0]), "other": torch.tensor([5.0, 6.0, 7.0])}
    terms = {"one": Term(normalise="group"), "other": Term()}
    assert weighted_sum(scores, terms).isfinite().tolist() == [True, False, True]


def test_small_differences_of_large_scores_survive() -> None:
    # In float32 the mean of these would swallow the difference; the statistics are float64.
    found = group_z_scores(torch.tensor([16777216.0, 16777218.0, 16777220.0]))
    assert found.tolist() == pytest.approx([-(1.5**0.5), 0, 1.5**0.5], rel=1e-6)


def test_z_scores_of_a_single_reward_change_no_advantage() -> None:
    scores = torch.randn(16, generator=torch.Generator().manual_seed(1)) * 3 + 8
    mask = torch.ones(16, dtype=torch.bool)
    [raw] = group_advantages([scores], [mask], std="group", clip=5.0)
    [normalised] = group_advantages([group_z_scores(scores)], [mask], std="group", clip=5.0)
    assert torch.allclose(raw, normalised, atol=1e-3)


@given(arrays(np.float32, 6, elements=st.floats(-100, 100, width=32)), st.floats(0.1, 10), st.floats(-5, 5))
def test_z_scores_are_centred_bounded_and_blind_to_affine_scalings(
    values: np.ndarray, scale: float, shift: float
) -> None:
    scores = torch.from_numpy(values)
    found = group_z_scores(scores)
    assert abs(found.double().sum().item()) < 1e-4
    assert found.abs().max() <= 5**0.5 + 1e-4  # no z-score of n samples exceeds sqrt(n - 1)
    if scores.max() - scores.min() > 1:
        moved = weighted_sum({"one": scores}, {"one": Term(shift=shift, scale=scale, normalise="group")})
        assert torch.allclose(moved, found, atol=1e-3)
