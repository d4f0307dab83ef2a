"""Over-optimisation is found where it is, and nowhere else; what is kept is worth keeping."""

from __future__ import annotations

import numpy as np
from experiment_fixture import flat_curves, measure

from flowrl.matched.turning import best_of, kept, turning

_RISES = (0.0, 1.0, 2.0, 3.0, 4.0)


def test_a_watched_measure_that_falls_while_the_reward_rises_is_marked() -> None:
    trained = measure(flat_curves(_RISES, _RISES), name="hpsv3", trained_by=("hpsv3",))
    watched = measure(flat_curves((0.5, 0.5, 0.5, 0.5, 0.5), (0.5, 0.55, 0.6, 0.52, 0.45)))
    assert turning(0, trained, watched) is None
    found = turning(1, trained, watched)
    assert found is not None
    assert (found.arm, found.trained, found.watched) == ("hpsv3", "hpsv3", "oracle")
    assert (found.best, found.step) == (20, 30)
    assert -0.17 < found.fall.mean < -0.13
    assert found.from_start.clear
    assert -0.07 < found.from_start.mean < -0.03


def test_a_reward_that_falls_too_is_not_over_optimised() -> None:
    trained = measure(flat_curves((0.0, 1.0, 2.0, 1.0, 0.5)), arms=("hpsv3",))
    watched = measure(flat_curves((0.5, 0.55, 0.6, 0.52, 0.45)), arms=("hpsv3",))
    assert turning(0, trained, watched) is None


def test_a_dip_that_mends_is_no_turn() -> None:
    trained = measure(flat_curves(_RISES), arms=("hpsv3",))
    watched = measure(flat_curves((0.5, 0.55, 0.4, 0.5, 0.56)), arms=("hpsv3",))
    assert turning(0, trained, watched) is None


def test_noise_turns_no_more_often_than_intervals_miss() -> None:
    trained = measure(flat_curves(_RISES), arms=("hpsv3",))
    generator = np.random.default_rng(3)
    found = 0
    for _ in range(100):
        watched = measure(generator.standard_normal((1, 3, 5, 64)), arms=("hpsv3",))
        found += turning(0, trained, watched) is not None
    assert found <= 8  # 2.5 expected of intervals of 95 %, of which one side counts


def test_the_best_of_noise_is_worth_nothing() -> None:
    values = np.random.default_rng(4).standard_normal((1, 9, 4000))
    assert values.mean(axis=(0, 2)).max() > 0.015  # what one sees who chooses and measures by the same prompts
    assert abs(best_of(values).mean()) < 3 / np.sqrt(4000)


def test_the_best_of_a_clear_curve_is_its_best() -> None:
    values = flat_curves((0.5, 0.7, 0.6), seeds=2)[0]
    assert np.array_equal(best_of(values), values[:, 1])


def test_the_checkpoint_to_keep_is_that_of_the_highest_mean_over_seeds() -> None:
    found = kept(1, measure(flat_curves((0.5, 0.5, 0.5), (0.5, 0.62, 0.6))))
    assert (found.arm, found.measure, found.step) == ("hpsv3", "oracle", 10)
    assert 0.61 < found.mean < 0.63
    assert 0.1 < found.gain.mean < 0.14
    assert found.gain.clear


def test_where_training_only_harmed_the_base_is_kept() -> None:
    found = kept(0, measure(flat_curves((0.5, 0.4, 0.3)), arms=("ditreward",)))
    assert found.step == 0
    assert found.gain.mean == 0
