"""Over-optimisation is found where it is, and nowhere else; what is kept is worth keeping."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from experiment_fixture import measure, noisy_curves

from flowrl.matched.turning import best_of, kept, turning

_RISES = (0.0, 1.0, 2.0, 3.0, 4.0)


def test_a_watched_measure_that_falls_while_the_reward_rises_is_marked() -> None:
    trained = measure(noisy_curves(_RISES, _RISES), name="hpsv3", trained_by=("hpsv3",))
    watched = measure(noisy_curves((0.5, 0.5, 0.5, 0.5, 0.5), (0.5, 0.55, 0.6, 0.52, 0.45)))
    assert turning(0, trained, watched) is None
    found = turning(1, trained, watched)
    assert found is not None
    assert (found.arm, found.trained, found.watched) == ("hpsv3", "hpsv3", "oracle")
    assert (found.best, found.step) == (20, 30)
    assert -0.17 < found.fall.mean < -0.13
    assert found.from_start.clear
    assert -0.07 < found.from_start.mean < -0.03


def test_a_reward_that_falls_too_is_not_over_optimised() -> None:
    trained = measure(noisy_curves((0.0, 1.0, 2.0, 1.0, 0.5)), arms=("hpsv3",))
    watched = measure(noisy_curves((0.5, 0.55, 0.6, 0.52, 0.45)), arms=("hpsv3",))
    assert turning(0, trained, watched) is None


def test_a_dip_that_mends_is_no_turn() -> None:
    trained = measure(noisy_curves(_RISES), arms=("hpsv3",))
    watched = measure(noisy_curves((0.5, 0.55, 0.4, 0.5, 0.56)), arms=("hpsv3",))
    assert turning(0, trained, watched) is None


@pytest.mark.parametrize("wobble", [0.0, 0.25, 0.5])
def test_neither_noise_nor_the_ups_and_downs_of_training_are_called_a_turn(wobble: float) -> None:
    trained = measure(noisy_curves(_RISES), arms=("hpsv3",))
    generator = np.random.default_rng(3)
    found = 0
    for _ in range(100):
        values = generator.standard_normal((1, 3, 5, 64)) + wobble * generator.standard_normal((1, 3, 5, 1))
        found += turning(0, trained, measure(values, arms=("hpsv3",))) is not None
    assert found <= 7  # 2.5 expected of intervals of 95 %, of which one side counts


def test_a_last_evaluation_alone_is_no_trend() -> None:
    trained = measure(noisy_curves(_RISES), arms=("hpsv3",))
    watched = measure(noisy_curves((0.5, 0.5, 0.5, 0.5, 0.3)), arms=("hpsv3",))
    assert turning(0, trained, watched) is None


def test_a_fall_from_the_start_is_dated_to_the_first_evaluation_after_it() -> None:
    trained = measure(noisy_curves(_RISES), arms=("hpsv3",))
    found = turning(0, trained, measure(noisy_curves((0.5, 0.4, 0.3, 0.3, 0.3)), arms=("hpsv3",)))
    assert found is not None
    assert (found.best, found.step) == (0, 10)


def test_measures_are_held_together_at_the_steps_that_both_have() -> None:
    trained = measure(noisy_curves(_RISES), arms=("hpsv3",))
    watched = measure(noisy_curves((0.5, 0.4, 0.3)), arms=("hpsv3",))
    found = turning(0, trained, replace(watched, steps=(0, 20, 40)))
    assert found is not None
    assert found.step == 20
    with pytest.raises(ValueError, match=r"must share seeds and 3 steps, got \[0, 40\]"):
        turning(0, trained, replace(watched, steps=(0, 25, 40)))


def test_the_best_of_noise_is_worth_nothing() -> None:
    generator = np.random.default_rng(4)
    noise = [generator.standard_normal((3, 9, 64)) + generator.standard_normal((3, 9, 1)) for _ in range(200)]
    assert np.mean([one.mean(axis=(0, 2)).max() for one in noise]) > 0.5  # of who chooses and measures by the same
    blind = [best_of(one).mean() for one in noise]
    assert abs(np.mean(blind)) < 3 * np.std(blind) / np.sqrt(200)


def test_the_best_of_a_clear_curve_is_its_best() -> None:
    values = noisy_curves((0.5, 0.7, 0.6), seeds=2)[0]
    assert np.array_equal(best_of(values), values[:, 1])


def test_the_checkpoint_to_keep_is_that_of_the_highest_mean_over_seeds() -> None:
    found = kept(1, measure(noisy_curves((0.5, 0.5, 0.5), (0.5, 0.62, 0.6))))
    assert (found.arm, found.measure, found.step) == ("hpsv3", "oracle", 10)
    assert 0.61 < found.mean < 0.63
    assert 0.1 < found.gain.mean < 0.14
    assert found.gain.clear


def test_what_a_step_that_was_chosen_blind_gains_is_less_than_it_seems() -> None:
    generator = np.random.default_rng(5)
    values = generator.standard_normal((1, 3, 9, 64)) + generator.standard_normal((1, 3, 9, 1))
    values[:, :, 0] = 0.0
    found = kept(0, measure(values, arms=("hpsv3",)))
    assert found.mean > 0.3
    assert not found.gain.settled


def test_where_training_only_harmed_the_base_is_kept() -> None:
    found = kept(0, measure(noisy_curves((0.5, 0.4, 0.3)), arms=("ditreward",)))
    assert found.step == 0
    assert found.gain.mean == 0
