"""One sampler step: its coefficients, limits, log-probability, gradient and KL against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch.distributions import Normal, kl_divergence

from flowrl.core import sde
from flowrl.core.schedule import flow_match_sigmas
from flowrl.types import StepKind

SIGMAS = flow_match_sigmas(10, shift=3.0)
SHAPE = (3, 16, 4, 4)
DIMS = 16 * 4 * 4
# a = 0.7, ten steps, shift 3, computed apart from this code. Columns: dt, diffusion, std, x factor, v factor,
# KL coefficient of the published code, KL coefficient of the true Gaussian, expected log-probability.
TABLE = {
    0: (-0.03987, 3.50567, 0.70000, 0.75500, -0.03987, 6.47e-5, 1.62e-3, -1.062),
    1: (-0.04678, 3.43507, 0.74296, 0.71254, -0.05824, 1.44e-4, 3.07e-3, -1.122),
    2: (-0.05566, 2.27263, 0.53615, 0.84263, -0.06929, 4.65e-4, 8.35e-3, -0.796),
    3: (-0.06732, 1.71850, 0.44590, 0.88409, -0.08382, 1.19e-3, 1.77e-2, -0.611),
    4: (-0.08309, 1.35920, 0.39179, 0.90289, -0.10345, 2.90e-3, 3.49e-2, -0.482),
    5: (-0.10513, 1.08809, 0.35280, 0.91201, -0.13088, 7.23e-3, 6.88e-2, -0.377),
    6: (-0.13727, 0.86117, 0.31907, 0.91546, -0.17091, 1.97e-2, 1.43e-1, -0.277),
    7: (-0.18683, 0.65244, 0.28201, 0.91446, -0.23260, 6.35e-2, 3.40e-1, -0.153),
    8: (-0.26912, 0.43441, 0.22536, 0.90867, -0.33505, 2.97e-1, 1.105, 0.071),
    9: (-0.00893, 0.06644, 0.00628, 0.99779, -0.01112, 1.40e-2, 1.568, 3.652),
}
CPS_STDS = [0.913, 0.869, 0.816, 0.752, 0.673, 0.573, 0.442, 0.264, 0.0085, 0.0]  # a = 0.8


def tensors(*names: int) -> list[torch.Tensor]:
    return [torch.randn(SHAPE, generator=torch.Generator().manual_seed(name)) for name in names]


@pytest.mark.parametrize("i", range(10))
def test_sde_coefficients_equal_the_published_table(i: int) -> None:
    dt, diffusion, std, x_scale, v_scale, kl_code, kl_true, _ = TABLE[i]
    found = sde.coefficients("sde", SIGMAS, i, 0.7)
    assert (SIGMAS[i + 1] - SIGMAS[i]).item() == pytest.approx(dt, abs=1e-5)
    assert found.diffusion == pytest.approx(diffusion, abs=1e-4)
    assert found.std == pytest.approx(std, abs=1e-5)
    assert found.x_scale == pytest.approx(x_scale, abs=1e-5)
    assert found.v_scale == pytest.approx(v_scale, abs=1e-5)
    assert found.v_scale**2 / (2 * found.diffusion**2) == pytest.approx(kl_code, rel=6e-3)
    assert found.v_scale**2 / (2 * found.std**2) == pytest.approx(kl_true, rel=6e-3)


@pytest.mark.parametrize("a", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("i", range(1, 10))
def test_past_the_first_step_the_factors_have_a_closed_form(i: int, a: float) -> None:
    sigma, dt = SIGMAS[i].item(), (SIGMAS[i + 1] - SIGMAS[i]).item()
    found = sde.coefficients("sde", SIGMAS, i, a)
    assert found.v_scale == pytest.approx((1 + a**2 / 2) * dt, rel=1e-6)
    assert found.x_scale == pytest.approx(1 + a**2 * dt / (2 * (1 - sigma)), rel=1e-6)


def test_at_sigma_1_the_pole_is_guarded_and_the_noise_is_a_itself() -> None:
    found = sde.coefficients("sde", SIGMAS, 0, 0.7)
    assert found.std == pytest.approx(0.7, rel=1e-6)
    assert found.x_scale == pytest.approx(1 - 0.7**2 / 2, rel=1e-6)
    assert found.v_scale == pytest.approx((SIGMAS[1] - SIGMAS[0]).item(), rel=1e-9)


@pytest.mark.parametrize("i", range(1, 10))
def test_the_sde_mean_is_equation_9_of_the_paper(i: int) -> None:
    x, v = tensors(1, 2)
    sigma, following = SIGMAS[i].double(), SIGMAS[i + 1].double()
    diffusion = 0.7 * (sigma / (1 - sigma)).sqrt()
    drift = v.double() + diffusion**2 / (2 * sigma) * (x.double() + (1 - sigma) * v.double())
    expected = x.double() + drift * (following - sigma)
    assert torch.allclose(sde.transition("sde", x, v, SIGMAS, i, 0.7).mean.double(), expected, atol=2e-6)


@pytest.mark.parametrize("i", range(10))
def test_an_ode_step_is_the_schedulers_euler_step_bit_for_bit(i: int) -> None:
    x, v = tensors(1, 2)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(10)
    expected = scheduler.step(v, scheduler.timesteps[i], x, return_dict=False)[0]
    step = sde.transition("ode", x, v, SIGMAS, i, 0.7)
    assert torch.equal(step.mean, expected)
    assert torch.equal(sde.draw(step, torch.full(SHAPE, 7.0)), expected)


@pytest.mark.parametrize("i", range(10))
@pytest.mark.parametrize("kind", ["sde", "cps"])
def test_without_noise_every_kind_is_the_ode_step(kind: StepKind, i: int) -> None:
    euler = sde.coefficients("ode", SIGMAS, i, 0.0)
    found = sde.coefficients(kind, SIGMAS, i, 0.0)
    assert (found.x_scale, found.std) == (pytest.approx(1, abs=1e-12), 0)
    assert found.v_scale == pytest.approx(euler.v_scale, rel=1e-6, abs=1e-12)
    near = sde.coefficients(kind, SIGMAS, i, 1e-4)
    assert near.x_scale == pytest.approx(1, abs=1e-6)
    assert near.v_scale == pytest.approx(euler.v_scale, abs=1e-6)


def test_cps_noise_equals_the_published_values() -> None:
    stds = [sde.coefficients("cps", SIGMAS, i, 0.8).std for i in range(10)]
    assert stds == pytest.approx(CPS_STDS, abs=6e-4)
    assert stds[-1] == 0


@pytest.mark.parametrize("a", [0.2, 0.8, 1.0])
@pytest.mark.parametrize("i", range(10))
def test_a_cps_step_leaves_signal_and_noise_as_the_next_sigma_demands(i: int, a: float) -> None:
    # With the true velocity eps - x0, the result must hold (1 - sigma') of x0 and noise of variance sigma'^2.
    sigma, following = SIGMAS[i].item(), SIGMAS[i + 1].item()
    found = sde.coefficients("cps", SIGMAS, i, a)
    of_x0 = found.x_scale * (1 - sigma) - found.v_scale
    of_noise = found.x_scale * sigma + found.v_scale
    assert of_x0 == pytest.approx(1 - following, abs=1e-9)
    assert math.hypot(of_noise, found.std) == pytest.approx(following, abs=1e-9)


@pytest.mark.parametrize("i", range(10))
def test_drawn_latents_have_the_mean_std_and_expected_log_prob_of_the_table(i: int) -> None:
    _, _, std, x_scale, v_scale, _, _, expected_log_prob = TABLE[i]
    size = 200_000
    x, v = torch.full((1, size), 0.5), torch.full((1, size), -1.5)
    step = sde.transition("sde", x, v, SIGMAS, i, 0.7)
    drawn = sde.draw(step, torch.randn(1, size, generator=torch.Generator().manual_seed(i)))
    error = std / math.sqrt(size)
    assert drawn.mean().item() == pytest.approx(x_scale * 0.5 - v_scale * 1.5, abs=4 * error + 2e-5)
    assert drawn.std().item() == pytest.approx(std, abs=3 * error + 1e-5)
    assert sde.log_prob(step, drawn).item() == pytest.approx(expected_log_prob, abs=8e-3)


@pytest.mark.parametrize("i", range(10))
def test_log_prob_is_the_normal_density_averaged_over_latent_dims(i: int) -> None:
    x, v, following = tensors(1, 2, 3)
    step = sde.transition("sde", x, v, SIGMAS, i, 0.7)
    following = step.mean + step.std * following
    expected = Normal(step.mean.double(), step.std).log_prob(following.double()).flatten(1).mean(1)
    found = sde.log_prob(step, following)
    assert found.shape == (3,)
    assert torch.allclose(found.double(), expected, atol=1e-5)


def test_cps_log_prob_drops_all_constants() -> None:
    x, v, following = tensors(1, 2, 3)
    step = sde.transition("cps", x, v, SIGMAS, 4, 0.8)
    expected = -(following - step.mean).square().flatten(1).mean(1)
    assert torch.equal(sde.log_prob(step, following), expected)


def test_an_ode_step_has_no_log_prob() -> None:
    x, v = tensors(1, 2)
    with pytest.raises(ValueError, match="must not be a trained step"):
        sde.log_prob(sde.transition("ode", x, v, SIGMAS, 4, 0.0), x)


@pytest.mark.parametrize("i", [0, 1, 4, 8])
def test_the_gradient_of_log_prob_is_the_closed_form(i: int) -> None:
    x, v, noise = tensors(1, 2, 3)
    v.requires_grad_()
    step = sde.transition("sde", x, v, SIGMAS, i, 0.7)
    following = (step.mean + step.std * noise).detach()
    [gradient] = torch.autograd.grad(sde.log_prob(step, following).sum(), v)
    v_scale = sde.coefficients("sde", SIGMAS, i, 0.7).v_scale
    by_hand = (following - step.mean) / (step.std**2 * DIMS) * v_scale
    assert torch.allclose(gradient, by_hand, rtol=1e-5, atol=1e-9)
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("i", range(10))
def test_kl_is_the_table_coefficient_times_the_velocity_error(i: int) -> None:
    x, v, v_ref = tensors(1, 2, 3)
    policy, reference = (sde.transition("sde", x, u, SIGMAS, i, 0.7) for u in (v, v_ref))
    error = (v - v_ref).square().flatten(1).mean(1)
    assert torch.allclose(sde.gaussian_kl(policy, reference), TABLE[i][5] * error, rtol=6e-3)


@pytest.mark.parametrize("i", [0, 3, 8])
def test_kl_is_the_gaussian_divergence_per_dim_times_the_step_length(i: int) -> None:
    x, v, v_ref = tensors(1, 2, 3)
    policy, reference = (sde.transition("sde", x, u, SIGMAS, i, 0.7) for u in (v, v_ref))
    divergence = kl_divergence(Normal(policy.mean, policy.std), Normal(reference.mean, reference.std))
    dt = (SIGMAS[i] - SIGMAS[i + 1]).item()
    assert torch.allclose(sde.gaussian_kl(policy, reference), divergence.flatten(1).mean(1) * dt, rtol=1e-4)


def test_kl_of_equal_transitions_is_exactly_0_and_undefined_for_other_kinds() -> None:
    x, v = tensors(1, 2)
    step = sde.transition("sde", x, v, SIGMAS, 5, 0.7)
    assert torch.equal(sde.gaussian_kl(step, step), torch.zeros(3))
    other = sde.transition("cps", x, v, SIGMAS, 5, 0.7)
    with pytest.raises(ValueError, match="defined for sde steps, got sde and cps"):
        sde.gaussian_kl(step, other)


def test_half_precision_inputs_are_computed_in_float32() -> None:
    x, v = tensors(1, 2)
    step = sde.transition("sde", x.bfloat16(), v.bfloat16(), SIGMAS, 5, 0.7)
    assert step.mean.dtype == torch.float32
    assert torch.equal(
        step.mean, sde.transition("sde", x.bfloat16().float(), v.bfloat16().float(), SIGMAS, 5, 0.7).mean
    )


@pytest.mark.parametrize("i", [-1, 10])
def test_a_step_outside_the_schedule_is_an_error(i: int) -> None:
    with pytest.raises(ValueError, match=rf"step_index must lie in \[0, 10\), got {i}"):
        sde.coefficients("sde", SIGMAS, i, 0.7)
