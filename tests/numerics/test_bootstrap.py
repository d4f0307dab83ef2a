"""Bootstrap over prompts: it covers what it says, keeps a prompt's pairs together, and compares in pairs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from rewards.evaluation import bootstrap
from rewards.evaluation.accuracy import Credits
from rewards.evaluation.bootstrap import interval, paired_difference, resample


def earned(credit: torch.Tensor) -> Credits:
    return Credits(
        credit=credit.double(),
        weight=torch.ones(len(credit), dtype=torch.float64),
        equal=torch.zeros(len(credit), dtype=torch.bool),
    )


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    prompts = torch.arange(60).repeat_interleave(5)
    hits, trials = 0, 400
    for trial in range(trials):
        # The chance of being right differs from prompt to prompt, around 0.7: pairs of a prompt are alike.
        chance = 0.4 + 0.6 * torch.rand(60, generator=generator)
        right = torch.rand(300, generator=generator) < chance[prompts]
        found = interval(resample(prompts, [earned(right)], draws=300, seed=trial, name="t")[:, 0])
        hits += found.low <= 0.7 <= found.high
    assert 0.91 <= hits / trials <= 0.98


def test_pairs_of_one_prompt_are_not_taken_for_independent() -> None:
    chance = (torch.arange(50) % 2).repeat_interleave(10)  # all pairs of a prompt are right or all are wrong
    by_prompt = resample(torch.arange(50).repeat_interleave(10), [earned(chance)], draws=2000, seed=0, name="t")
    by_pair = resample(torch.arange(500), [earned(chance)], draws=2000, seed=0, name="t")
    assert by_prompt.std().item() == pytest.approx(0.5 / math.sqrt(50), rel=0.06)
    assert by_pair.std().item() == pytest.approx(0.5 / math.sqrt(500), rel=0.06)


def test_it_is_the_ratio_of_sums_over_the_drawn_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = torch.tensor([0, 0, 1, 2])
    one = Credits(
        credit=torch.tensor([1.0, 0.0, 0.5, 1.0]).double(),
        weight=torch.tensor([1.0, 1.0, 2.0, 0.0]).double(),
        equal=torch.zeros(4, dtype=torch.bool),
    )
    drawn = resample(prompts, [one], draws=400, seed=5, name="t")[:, 0]
    # The last prompt has no weight and is never drawn. Two draws of two prompts: (1 + 1 or 1) / (2 + 2).
    assert set(drawn.tolist()) == {0.5}
    uneven = replace(one, credit=torch.tensor([1.0, 1.0, 0.0, 1.0]).double())
    drawn = resample(prompts, [uneven], draws=400, seed=5, name="t")[:, 0]
    assert set(drawn.tolist()) == {0.0, 0.5, 1.0}
    monkeypatch.setattr(bootstrap, "_CHUNK", 7)  # draws are made in chunks: they are the same whatever their size
    assert torch.equal(drawn, resample(prompts, [uneven], draws=400, seed=5, name="t")[:, 0])


def test_the_draws_depend_on_the_seed_and_the_name_alone() -> None:
    right = earned(torch.rand(200, generator=torch.Generator().manual_seed(1)) < 0.6)
    prompts = torch.arange(200)
    state = torch.get_rng_state()
    first = resample(prompts, [right], draws=50, seed=0, name="a")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, resample(prompts, [right, right], draws=50, seed=0, name="a")[:, :1])
    assert not torch.equal(first, resample(prompts, [right], draws=50, seed=1, name="a"))
    assert not torch.equal(first, resample(prompts, [right], draws=50, seed=0, name="b"))


def test_a_paired_difference_is_far_narrower_than_two_intervals() -> None:
    generator = torch.Generator().manual_seed(2)
    second = torch.rand(1000, generator=generator) < 0.7
    first = second.clone()
    first[torch.nonzero(~second)[:20, 0]] = True  # right on 20 pairs more, and nowhere worse
    one, other = earned(first), earned(second)
    samples = resample(torch.arange(1000), [one, other], draws=2000, seed=0, name="t")
    found = paired_difference(one, other, samples[:, 0], samples[:, 1])
    assert found.difference == pytest.approx(0.02)
    assert 0.009 < found.interval.low < 0.014
    assert 0.026 < found.interval.high < 0.031
    assert found.probability == 1
    alone = interval(samples[:, 0])
    assert alone.high - alone.low > 2.5 * (found.interval.high - found.interval.low)
    back = paired_difference(other, one, samples[:, 1], samples[:, 0])
    assert back.probability == 0
    assert back.interval.low == pytest.approx(-found.interval.high)


def test_equal_rewards_are_as_likely_better_as_worse() -> None:
    one = earned(torch.rand(50, generator=torch.Generator().manual_seed(1)) < 0.6)
    samples = resample(torch.arange(50), [one, one], draws=100, seed=0, name="t")
    assert paired_difference(one, one, samples[:, 0], samples[:, 1]).probability == 0.5


def test_nothing_counted_is_not_a_number_and_bad_input_is_refused() -> None:
    nothing = replace(earned(torch.ones(3)), weight=torch.zeros(3, dtype=torch.float64))
    found = interval(resample(torch.arange(3), [nothing], draws=10, seed=0, name="t")[:, 0])
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    with pytest.raises(ValueError, match="their weights must be equal"):
        resample(torch.arange(3), [nothing, earned(torch.ones(3))], draws=10, seed=0, name="t")
    with pytest.raises(ValueError, match="needs rewards and draws, got 0 and 10"):
        resample(torch.arange(3), [], draws=10, seed=0, name="t")
