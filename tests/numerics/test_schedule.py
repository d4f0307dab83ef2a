"""The noise schedule: equal to the published tables and, bit for bit, to the diffusers scheduler."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from flowrl.core.schedule import flow_match_sigmas

# SD3.5 (shift 3), computed apart from this code.
SIGMAS_10 = [1, 0.960129, 0.913349, 0.857692, 0.790368, 0.707278, 0.602151, 0.464876, 0.278049, 0.008929, 0]
SIGMAS_40 = [
    *(1, 0.99133, 0.98236, 0.97306, 0.96342, 0.95342, 0.94305, 0.93227, 0.92107, 0.90941),
    *(0.89728, 0.88464, 0.87145, 0.85769, 0.84332, 0.82828, 0.81254, 0.79604, 0.77874, 0.76056),
    *(0.74144, 0.72131, 0.70007, 0.67765, 0.65394, 0.62881, 0.60215, 0.57380, 0.54361, 0.51138),
    *(0.47691, 0.43994, 0.40020, 0.35737, 0.31106, 0.26085, 0.20620, 0.14651, 0.08105, 0.00893, 0),
]


@pytest.mark.parametrize("table", [SIGMAS_10, SIGMAS_40], ids=["10 steps", "40 steps"])
def test_sigmas_equal_the_published_table(table: list[float]) -> None:
    sigmas = flow_match_sigmas(len(table) - 1, shift=3.0)
    assert sigmas.tolist() == pytest.approx(table, abs=1e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.5])
@pytest.mark.parametrize("num_steps", [1, 2, 4, 10, 28, 40, 1000])
def test_sigmas_are_those_of_the_diffusers_scheduler_bit_for_bit(num_steps: int, shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
    scheduler.set_timesteps(num_steps)
    sigmas = flow_match_sigmas(num_steps, shift=shift)
    assert torch.equal(sigmas, scheduler.sigmas)
    assert torch.equal(1000 * sigmas[:-1], scheduler.timesteps)


@pytest.mark.parametrize("num_steps", [1, 10, 40])
def test_a_run_of_n_steps_has_n_plus_1_falling_sigmas_from_1_to_0(num_steps: int) -> None:
    sigmas = flow_match_sigmas(num_steps, shift=3.0)
    assert len(sigmas) == num_steps + 1
    assert sigmas.dtype == torch.float32
    assert sigmas[0] == 1
    assert sigmas[-1] == 0
    assert bool((sigmas.diff() < 0).all())


def test_no_steps_is_an_error() -> None:
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        flow_match_sigmas(0, shift=3.0)
