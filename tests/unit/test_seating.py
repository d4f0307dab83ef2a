"""Where actors sit: no device unused, no two ranks of a gang on one."""

from __future__ import annotations

import pytest

from flowrl.config import PlacementSection
from flowrl.seating import Seating, seating


@pytest.mark.parametrize(
    ("placement", "expected", "shares"),
    [
        (
            PlacementSection(mode="split", num_learners=2, num_rollouts=3, num_scorers=2),
            Seating(learners=(0, 1), rollouts=(2, 3, 4), scorers=(5, 6), encoder=(5,)),
            [1, 1, 1, 1, 1, 2, 1],
        ),
        (
            PlacementSection(mode="fused", num_learners=2, num_rollouts=3, num_scorers=1),
            Seating(learners=(0, 1), rollouts=(), scorers=(2,), encoder=(2,)),
            [1, 1, 2],
        ),
        (
            PlacementSection(mode="colocated", num_learners=2, num_rollouts=3, num_scorers=1),
            Seating(learners=(0, 1), rollouts=(0, 1, 2), scorers=(0,), encoder=(0,)),
            [4, 2, 1],
        ),
        (
            PlacementSection(mode="colocated", num_learners=1, num_rollouts=0, num_scorers=1),
            Seating(learners=(0,), rollouts=(), scorers=(0,), encoder=(0,)),
            [3],
        ),
        (
            PlacementSection(mode="local", num_learners=2, num_rollouts=3, num_scorers=4),
            Seating(learners=(0,), rollouts=(), scorers=(0,), encoder=(0,)),
            [3],
        ),
    ],
    ids=lambda value: value.mode if isinstance(value, PlacementSection) else "",
)
def test_each_mode_seats_its_roles(placement: PlacementSection, expected: Seating, shares: list[int]) -> None:
    found = seating(placement)
    assert found == expected
    assert found.shares == shares
    assert placement.learners_sample == (found.rollouts == ())
