"""Noise by key: a sample's noise depends on what the sample is, never on who draws it, when, or beside whom."""

from __future__ import annotations

import itertools

import pytest
import torch

from flowrl.core import seeds

SHAPE = (16, 4, 4)


def test_a_key_gives_the_same_seed_in_every_process() -> None:
    # Fixed values: a change would change every run that people have made.
    assert seeds.derive(0, 1, 2, 3) == seeds.derive(0, 1, 2, 3)
    assert 0 <= seeds.derive("a") < 2**63
    assert seeds.derive(1, "2") != seeds.derive("1", 2)
    assert seeds.derive(1, 23) != seeds.derive(12, 3)


@pytest.mark.parametrize("changed", range(4))
def test_every_part_of_a_samples_key_matters(changed: int) -> None:
    key = [5, 3, 17, 8]  # run seed, step, prompt, sample
    other = [value + (place == changed) for place, value in enumerate(key)]

    def noise(seed: int, step: int, prompt: int, sample: int) -> torch.Tensor:
        return seeds.initial_noise(seeds.sample_seeds(seed, step, prompt, sample + 1)[-1:], SHAPE)

    assert not torch.equal(noise(*key), noise(*other))


def test_a_samples_noise_does_not_depend_on_the_size_of_its_group_or_its_neighbours() -> None:
    small, large = seeds.sample_seeds(0, 1, 2, 3), seeds.sample_seeds(0, 1, 2, 16)
    assert torch.equal(small, large[:3])
    assert torch.equal(seeds.initial_noise(small, SHAPE), seeds.initial_noise(large, SHAPE)[:3])
    shuffled = large[[7, 2, 11]]
    for i in (0, 4):
        assert torch.equal(seeds.step_noise(shuffled, SHAPE, i), seeds.step_noise(large, SHAPE, i)[[7, 2, 11]])


def test_drawing_neither_reads_nor_moves_the_global_generator() -> None:
    keys = seeds.sample_seeds(0, 1, 2, 2)
    torch.manual_seed(1)
    first = seeds.initial_noise(keys, SHAPE)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(seeds.initial_noise(keys, SHAPE), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_all_streams_of_a_run_are_distinct() -> None:
    # Start noise and each step's noise of several samples, prompts, steps and runs: no two draws are alike.
    draws: list[torch.Tensor] = []
    for seed, step, prompt in itertools.product((0, 1), (-1, 1, 2), (0, 1)):
        keys = seeds.sample_seeds(seed, step, prompt, 3)
        draws += [seeds.initial_noise(keys, (8,)), *(seeds.step_noise(keys, (8,), i) for i in range(4))]
    everything = torch.cat(draws)
    assert len({tuple(row) for row in everything.tolist()}) == len(everything) == 2 * 3 * 2 * 3 * 5


def test_seeds_of_a_long_run_do_not_collide() -> None:
    # A thousand steps of 12 prompts x 16 samples: what tells two samples apart must be wider than 32 bits.
    found = torch.cat([seeds.sample_seeds(0, step, prompt, 16) for step in range(500) for prompt in range(12)])
    assert len(found.unique()) == len(found)


def test_noise_is_standard_normal_and_members_of_a_group_are_uncorrelated() -> None:
    noise = seeds.initial_noise(seeds.sample_seeds(0, 1, 2, 8), (16, 32, 32)).flatten(1)
    assert noise.mean().item() == pytest.approx(0, abs=0.01)
    assert noise.std().item() == pytest.approx(1, abs=0.01)
    correlation = torch.corrcoef(noise) - torch.eye(8)
    assert correlation.abs().max().item() < 0.035
