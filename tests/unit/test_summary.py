"""What a step's scores say, and when they cannot be trained on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flowrl.evaluate import Evaluation
from flowrl.memory import MemoryMeter
from flowrl.metrics import describe, reduce
from flowrl.summary import RewardError, advantage_metrics, check_valid, score_metrics
from flowrl.types import Prompt, Scores

NAN = float("nan")


def scores(*values: float, name: str = "r", other: float = 1.0) -> Scores:
    first = torch.tensor(values, dtype=torch.float32)
    return Scores(
        per_reward={name: first, "other": torch.full_like(first, other)},
        total=first,
        unnormalised=first,
        valid=first.isfinite(),
        trajectory_bytes=100,
        seconds={"rollout": 1.0, "decode": 0.5, "score": 0.25},
    )


def reduced(*groups: Scores) -> dict[str, float]:
    return reduce(score_metrics(list(groups)))


def test_means_and_spreads_are_over_all_finite_samples() -> None:
    found = reduced(scores(1, 2, 3), scores(5, NAN, 5))
    assert found["reward/r/mean"] == pytest.approx(16 / 5)
    assert found["reward/r/std"] == pytest.approx(torch.tensor([1.0, 2, 3, 5, 5]).std(correction=0).item())
    assert found["reward/r/invalid"] == pytest.approx(1 / 6)
    assert found["reward/other/invalid"] == 0
    assert found["reward/total/mean"] == pytest.approx(16 / 5)


def test_the_headline_is_the_mean_of_the_sum_before_it_is_normalised() -> None:
    normalised = replace(scores(1, 2, NAN), total=torch.tensor([-1.0, 1.0, NAN]))
    assert reduced(normalised, scores(6))["reward/total/mean"] == 3


def test_a_group_counts_as_without_variance_when_its_valid_scores_are_equal() -> None:
    assert reduced(scores(1, 2, 3), scores(5, NAN, 5), scores(4, 4, 4))["policy/zero_variance_groups"] == 2


def test_costs_are_summed_over_groups() -> None:
    found = reduced(scores(1, 2, 3), scores(5, 6, 7))
    assert found["bytes/trajectories"] == 200
    assert found["count/images"] == 6
    assert (found["time/rollout_busy_s"], found["time/decode_busy_s"], found["time/score_busy_s"]) == (2, 1, 0.5)


def test_diversity_is_the_mean_over_the_prompts_of_the_step() -> None:
    groups = [replace(scores(1, 2), diversity=diversity) for diversity in (0.25, 0.75)]
    assert reduced(*groups)["policy/diversity"] == 0.5


@pytest.mark.parametrize(("samples", "expected"), [(1, None), (2, [0.2, 0.6])])
def test_one_sample_of_a_prompt_has_no_diversity(samples: int, expected: list[float] | None) -> None:
    groups = [replace(scores(*[1.0] * samples), diversity=diversity) for diversity in (0.2, 0.6)]
    found = Evaluation(prompts=[Prompt(id=0, text="a"), Prompt(id=1, text="b")], scores=groups)
    assert found.diversity() == expected
    assert ("eval/diversity/mean" in reduce(found.metrics())) == (expected is not None)


def test_every_metric_is_explained() -> None:
    for metric in [*score_metrics([scores(1, 2)]), *advantage_metrics([torch.ones(2)])]:
        assert describe(metric.key)


def test_the_size_of_advantages_is_their_mean_absolute_value() -> None:
    [metric] = advantage_metrics([torch.tensor([1.0, -1.0]), torch.tensor([0.0, 4.0])])
    assert metric.value == 1.5


def test_a_few_failures_are_let_pass_and_too_many_stop_with_the_reward_s_name() -> None:
    groups = [scores(1, 2, 3, 4, name="clip"), scores(1, NAN, 3, 4, name="clip")]
    check_valid(groups, 1 / 8)
    with pytest.raises(
        RewardError, match=r"1 of 8 samples have no finite score from clip; rewards.max_invalid_fraction allows 12.0%"
    ):
        check_valid(groups, 0.12)
    check_valid([scores(1, 2)], 0.0)


def test_scores_that_are_finite_apart_but_not_together_stop_as_well() -> None:
    total = torch.tensor([float("inf")])
    broken = Scores(per_reward={"a": torch.tensor([1.0])}, total=total, unnormalised=total, valid=torch.tensor([False]))
    with pytest.raises(RewardError, match="1 of 1 samples have no finite score"):
        check_valid([broken], 0.5)


def test_memory_is_measured_and_its_peak_remembered() -> None:
    meter = MemoryMeter()
    first, second = (reduce(meter.metrics(actors_bytes)) for actors_bytes in (3 * 2**30, 2**30))
    assert 0.05 < first["memory/driver_gib"] < 50
    assert (first["memory/actors_gib"], second["memory/actors_gib"]) == (3.0, 1.0)
    assert second["memory/peak_gib"] == first["memory/peak_gib"] == 3.0 + first["memory/driver_gib"]
