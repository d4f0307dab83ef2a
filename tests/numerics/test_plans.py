"""Which sampler steps are stochastic and trained, for every schedule of them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowrl.algorithms.configs import FlowGRPOConfig
from flowrl.algorithms.flow_grpo import FlowGRPO
from flowrl.types import SamplingPlan


def plan(step: int, seed: int = 0, num_steps: int = 10, **options: Any) -> SamplingPlan:
    return FlowGRPO(FlowGRPOConfig(**options), seed=seed).plan(step, num_steps)


def starts(seed: int, **options: Any) -> list[int]:
    options = {"trained_steps": "window", "window_size": 2, "window_low": 0, "window_high": 5, **options}
    return [plan(step, seed, **options).start for step in range(1, 81)]


def test_all_means_all_but_the_last_step() -> None:
    found = plan(1)
    assert list(found.trained) == list(range(9))
    assert found.kinds == ("sde",) * 10
    assert found.noise_level == 0.7


@pytest.mark.parametrize(("fraction", "trained"), [(0.5, 5), (0.99, 9), (0.1, 1), (0.55, 5)])
def test_a_fraction_trains_the_first_steps(fraction: float, trained: int) -> None:
    found = plan(1, trained_steps="fraction", fraction=fraction)
    assert list(found.trained) == list(range(trained))
    assert found.kinds == ("sde",) * 10


@pytest.mark.parametrize("kind", ["sde", "cps"])
def test_outside_a_window_steps_are_deterministic(kind: str) -> None:
    found = plan(
        1, trained_steps="window", window_schedule="fixed", window_size=3, window_low=2, window_high=6, step_kind=kind
    )
    assert found.kinds == ("ode", "ode", kind, kind, kind, "ode", "ode", "ode", "ode", "ode")
    assert list(found.trained) == [2, 3, 4]


def test_random_windows_visit_every_place_in_range_and_no_other() -> None:
    assert set(starts(0, window_low=1, window_high=6)) == {1, 2, 3, 4}
    assert set(starts(0, window_size=5)) == {0}


def test_a_random_window_is_a_function_of_seed_and_step_alone() -> None:
    assert starts(3) == starts(3)
    assert starts(3) != starts(4)
    forwards = [plan(step, 3, trained_steps="window").start for step in (5, 6)]
    backwards = [plan(step, 3, trained_steps="window").start for step in (6, 5)]
    assert forwards == backwards[::-1]


def test_a_fixed_window_stays() -> None:
    assert set(starts(0, window_schedule="fixed", window_low=1)) == {1}


def test_a_progressive_window_moves_to_lower_noise_and_stops_at_the_end() -> None:
    found = starts(0, window_schedule="progressive", window_every=10)
    assert found[0] == 0
    assert found == sorted(found)
    assert [found.index(place) + 1 for place in range(4)] == [1, 11, 21, 31]
    assert found[-1] == 3


@given(
    st.integers(1, 200),
    st.integers(0, 50),
    st.integers(2, 12),
    st.sampled_from(["all", "fraction", "window"]),
    st.sampled_from(["random", "fixed", "progressive"]),
    st.data(),
)
def test_no_valid_configuration_trains_the_last_step_or_an_ode_step(
    step: int, seed: int, num_steps: int, trained: str, schedule: str, data: st.DataObject
) -> None:
    low = data.draw(st.integers(0, num_steps - 2))
    high = data.draw(st.integers(low + 1, num_steps - 1))
    options = {
        "trained_steps": trained,
        "window_schedule": schedule,
        "window_low": low,
        "window_high": high,
        "window_size": data.draw(st.integers(1, high - low)),
        "window_every": data.draw(st.integers(1, 30)),
        "fraction": data.draw(st.floats(0.05, 0.95)),
    }
    config = FlowGRPOConfig(**options)
    if config.problem(num_steps) is not None:
        return
    found = FlowGRPO(config, seed).plan(step, num_steps)
    assert len(found.kinds) == num_steps
    assert len(found.trained) >= 1
    assert max(found.trained) < num_steps - 1
    assert all(found.kinds[i] == "sde" for i in found.trained)
    if trained == "window":
        assert low <= found.start
        assert found.stop <= high
