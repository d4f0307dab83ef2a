"""Advantages: hand examples and what must never happen to them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from flowrl.core.advantages import group_advantages

SCORES = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 10.0, 16.0])]
ALL = [torch.ones(3, dtype=torch.bool)] * 2


def test_group_std_hand_example() -> None:
    first, second = group_advantages(SCORES, ALL, std="group", clip=5.0)
    spread = (2 / 3) ** 0.5
    assert first.tolist() == pytest.approx([-1 / (spread + 1e-4), 0, 1 / (spread + 1e-4)], rel=1e-6)
    assert second.tolist() == pytest.approx([-2 / (8**0.5 + 1e-4)] * 2 + [4 / (8**0.5 + 1e-4)], rel=1e-6)
    assert first.dtype == torch.float32


def test_global_std_hand_example_holds_the_spread_between_prompts() -> None:
    first, second = group_advantages(SCORES, ALL, std="global", clip=5.0)
    spread = np.std([1, 2, 3, 10, 10, 16]) + 1e-4
    assert first.tolist() == pytest.approx([-1 / spread, 0, 1 / spread], rel=1e-6)
    assert second.tolist() == pytest.approx([-2 / spread, -2 / spread, 4 / spread], rel=1e-6)


@pytest.mark.parametrize("std", ["group", "global"])
def test_a_group_of_equal_scores_gets_exactly_0_and_the_others_what_they_deserve(std: str) -> None:
    equal, unequal = group_advantages([torch.full((3,), 0.1), SCORES[0]], ALL, std=std, clip=5.0)  # type: ignore[arg-type]
    assert torch.equal(equal, torch.zeros(3))
    assert unequal[2] > 0


@pytest.mark.parametrize("std", ["group", "global"])
def test_a_step_whose_scores_are_all_equal_is_all_zero(std: str) -> None:
    scores = [torch.full((3,), 0.3)] * 2
    assert torch.equal(torch.cat(group_advantages(scores, ALL, std=std, clip=5.0)), torch.zeros(6))  # type: ignore[arg-type]


def test_masked_samples_get_0_and_take_no_part_in_mean_or_std() -> None:
    scores = [torch.tensor([1.0, float("nan"), 2.0, 3.0, float("inf")])]
    mask = [torch.tensor([True, False, True, True, False])]
    [found] = group_advantages(scores, mask, std="global", clip=5.0)
    [expected] = group_advantages(SCORES[:1], ALL[:1], std="global", clip=5.0)
    assert torch.equal(found[mask[0]], expected)
    assert found[~mask[0]].tolist() == [0, 0]


def test_a_group_with_no_valid_sample_or_a_single_one_is_zero() -> None:
    scores = [torch.full((3,), float("nan")), torch.tensor([float("nan"), 5.0, float("nan")]), SCORES[0]]
    mask = [score.isfinite() for score in scores]
    none, single, whole = group_advantages(scores, mask, std="group", clip=5.0)
    assert torch.equal(none, torch.zeros(3))
    assert torch.equal(single, torch.zeros(3))
    assert whole[2] > 0


def test_advantages_are_clipped_on_both_sides() -> None:
    scores = torch.zeros(101)
    scores[0] = 1.0
    [found] = group_advantages([scores], [torch.ones(101, dtype=torch.bool)], std="group", clip=5.0)
    [mirrored] = group_advantages([-scores], [torch.ones(101, dtype=torch.bool)], std="group", clip=5.0)
    assert found[0] == 5
    assert mirrored[0] == -5
    assert -1 < found[1] < 0


def test_small_differences_of_large_scores_survive() -> None:
    # In float32 the mean of these would swallow the difference; the statistics are float64.
    scores = torch.tensor([16777216.0, 16777218.0, 16777220.0])
    [found] = group_advantages([scores], ALL[:1], std="group", clip=5.0)
    spread = 2 * (2 / 3) ** 0.5
    assert found.tolist() == pytest.approx([-2 / (spread + 1e-4), 0, 2 / (spread + 1e-4)], rel=1e-6)


@given(
    arrays(np.float32, (4, 6), elements=st.floats(-100, 100, width=32)),
    arrays(np.bool_, (4, 6)),
    st.sampled_from(["group", "global"]),
)
def test_advantages_are_finite_centred_and_ordered_as_the_scores(
    values: np.ndarray, mask: np.ndarray, std: str
) -> None:
    scores, valid = list(torch.from_numpy(values)), list(torch.from_numpy(mask))
    for group, kept, score in zip(
        group_advantages(scores, valid, std=std, clip=1e9),  # type: ignore[arg-type]
        valid,
        scores,
        strict=True,
    ):
        assert bool(group.isfinite().all())
        assert abs(group.double().sum().item()) < 1e-2
        order = score[kept].argsort()
        assert bool((group[kept][order].diff() >= 0).all())
