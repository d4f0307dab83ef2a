"""The Flow-GRPO loss on a real policy: exact values, clipping, KL and GRPO-Guard against hand formulas."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from flowrl.algorithms.configs import FlowGRPOConfig
from flowrl.algorithms.flow_grpo import FlowGRPO
from flowrl.core import sde
from flowrl.core.sampler import replay
from flowrl.models.sd3 import SD3Policy
from flowrl.types import LossOutput, TrainBatch, Trajectory
from tests import tiny

CPU = torch.device("cpu")
ALL = slice(0, 4)
CLIP = 1e-4
STEP = 2


def loss_of(policy: SD3Policy, batch: TrainBatch, step_index: int = STEP, **options: Any) -> LossOutput:
    algorithm = FlowGRPO(FlowGRPOConfig(**{"kl_beta": 0.0, "clip_range": CLIP, **options}), seed=0)
    return algorithm.loss(policy, batch, ALL, step_index)


def values(output: LossOutput) -> dict[str, float]:
    return {metric.key: metric.value for metric in (*output.metrics, *output.drift)}


def gradients(policy: SD3Policy, loss: torch.Tensor) -> torch.Tensor:
    parameters = [parameter for _, parameter in policy.trainable()]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    pairs = zip(found, parameters, strict=True)
    return torch.cat([torch.zeros(p.numel()) if g is None else g.flatten() for g, p in pairs])


def with_ratios(group: Trajectory, ratios: list[float], advantages: list[float]) -> TrainBatch:
    """A batch whose stored log-probs are shifted so that a replay with the same weights meets these ratios."""
    assert group.path is not None
    old = group.path.log_probs - torch.tensor(ratios).log()[:, None]
    return TrainBatch(
        trajectory=replace(group, path=replace(group.path, log_probs=old)), advantages=torch.tensor(advantages)
    )


@pytest.fixture
def moved(policy: SD3Policy) -> SD3Policy:
    """A policy whose adapter acts."""
    return tiny.perturb(policy)


def test_loss_is_the_mean_of_the_clipped_surrogate(moved: SD3Policy) -> None:
    ratios, advantages = [1.05, 0.95, 1.00002, 0.9], [1.0, 2.0, -3.0, -0.5]
    output = loss_of(moved, with_ratios(tiny.trajectory(moved), ratios, advantages))
    by_hand = [max(-a * r, -a * min(max(r, 1 - CLIP), 1 + CLIP)) for r, a in zip(ratios, advantages, strict=True)]
    assert output.loss.item() == pytest.approx(sum(by_hand) / 4, rel=1e-5)
    assert values(output)["policy/clip_fraction"] == 0.75
    assert values(output)["policy/ratio_absdev_max"] == pytest.approx(0.1, rel=1e-4)
    assert values(output)["policy/ratio_mean"] == pytest.approx(sum(ratios) / 4, rel=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "learns"),
    [
        (1.01, 1.0, False),  # a good sample that is already more likely: enough
        (0.99, 1.0, True),
        (0.99, -1.0, False),  # a bad sample that is already less likely: enough
        (1.01, -1.0, True),
        (1.0, 1.0, True),
        (1.0, -1.0, True),
    ],
)
def test_the_gradient_stops_where_clipping_says_enough_and_only_there(
    moved: SD3Policy, ratio: float, advantage: float, learns: bool
) -> None:
    batch = with_ratios(tiny.trajectory(moved), [ratio] * 4, [advantage] * 4)
    gradient = gradients(moved, loss_of(moved, batch).loss)
    if not learns:
        assert torch.equal(gradient, torch.zeros_like(gradient))
        return
    step, following = replay(moved, batch.trajectory, ALL, STEP, CPU)
    by_hand = gradients(moved, (-advantage * ratio * sde.log_prob(step, following)).mean())
    assert by_hand.abs().max() > 0
    assert torch.allclose(gradient, by_hand, rtol=1e-3, atol=1e-8)


def test_samples_of_advantage_0_leave_no_trace_in_the_gradient(moved: SD3Policy) -> None:
    group = tiny.trajectory(moved)
    batch = with_ratios(group, [1.0] * 4, [0.0, 1.0, 0.0, 0.0])
    step, following = replay(moved, group, ALL, STEP, CPU)
    by_hand = gradients(moved, -sde.log_prob(step, following)[1] / 4)
    assert torch.allclose(gradients(moved, loss_of(moved, batch).loss), by_hand, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("form", ["gaussian", "velocity"])
@pytest.mark.parametrize("step_index", [0, 1, 2])
def test_kl_equals_the_velocity_error_times_the_coefficient_of_its_form(
    moved: SD3Policy, form: str, step_index: int
) -> None:
    group = tiny.trajectory(moved)
    batch = with_ratios(group, [1.0] * 4, [1.0, -1.0, 2.0, -2.0])
    output = loss_of(moved, batch, step_index, kl_beta=0.3, kl_form=form)
    error = velocity_error(moved, group, step_index)
    scalars = sde.coefficients("sde", moved.sigmas(4), step_index, 0.7)
    coefficient = scalars.v_scale**2 / (2 * scalars.diffusion**2) if form == "gaussian" else 1.0
    expected = coefficient * error.mean().item()
    assert expected > 0
    assert values(output)["policy/kl"] == pytest.approx(expected, rel=1e-3)
    assert output.loss.item() == pytest.approx(values(output)["policy/policy_loss"] + 0.3 * expected, rel=1e-3)


@pytest.mark.parametrize("form", ["gaussian", "velocity"])
def test_kl_pulls_the_adapter_back_with_the_gradient_of_the_velocity_error(moved: SD3Policy, form: str) -> None:
    group = tiny.trajectory(moved)
    batch = TrainBatch(trajectory=group, advantages=torch.zeros(4))  # nothing but the KL acts
    gradient = gradients(moved, loss_of(moved, batch, kl_beta=1.0, kl_form=form).loss)
    scalars = sde.coefficients("sde", moved.sigmas(4), STEP, 0.7)
    coefficient = scalars.v_scale**2 / (2 * scalars.diffusion**2) if form == "gaussian" else 1.0
    by_hand = gradients(moved, coefficient * velocity_error(moved, group, STEP).mean())
    assert gradient.abs().max() > 1e-6
    assert torch.allclose(gradient, by_hand, rtol=2e-3, atol=1e-3 * by_hand.abs().max().item())


def velocity_error(policy: SD3Policy, group: Trajectory, step_index: int) -> torch.Tensor:
    """mean((v - v_ref)^2) per sample, from two calls of the policy and nothing else."""
    assert group.path is not None
    x = group.path.latents[:, step_index - group.plan.start]
    arguments = (x, policy.sigmas(4)[step_index], group.condition, group.negative, group.guidance_scale)
    velocity = policy.velocity(*arguments)
    with torch.no_grad(), policy.reference():
        reference = policy.velocity(*arguments)
    return (velocity - reference).square().flatten(1).mean(1)


def test_the_normalised_ratio_is_exp_of_noise_times_the_shift_of_the_mean(policy: SD3Policy) -> None:
    group = tiny.trajectory(policy, keep_means=True)
    assert group.path is not None
    assert group.path.means is not None
    tiny.perturb(policy, scale=0.02)
    old_mean, following = group.path.means[:, STEP], group.path.latents[:, STEP + 1]
    step, _ = replay(policy, group, ALL, STEP, CPU)
    noise, shift = (following - old_mean) / step.std, step.mean - old_mean
    expected = (noise * shift).flatten(1).mean(1).exp()
    batch = TrainBatch(trajectory=group, advantages=torch.zeros(4))
    found = values(loss_of(policy, batch, ratio_norm=True))
    assert found["policy/ratio_mean"] == pytest.approx(expected.mean().item(), abs=1e-6)
    assert found["policy/ratio_absdev_max"] == pytest.approx((expected - 1).abs().max().item(), abs=2e-6)
    assert found["policy/ratio_absdev_max"] > 1e-4
    # What the normalisation removes from the plain ratio: the factor 1 / std and a bias that is always negative.
    log_ratio = (noise * shift / step.std - shift.square() / (2 * step.std**2)).flatten(1).mean(1)
    assert values(loss_of(policy, batch))["policy/ratio_mean"] == pytest.approx(log_ratio.exp().mean().item(), rel=1e-5)
    assert bool((log_ratio < expected.log() / step.std).all())


@pytest.mark.parametrize("step_index", [0, 1, 2])
def test_reweighting_divides_the_policy_loss_by_the_length_of_the_step_and_not_the_kl(
    moved: SD3Policy, step_index: int
) -> None:
    batch = with_ratios(tiny.trajectory(moved), [1.05, 0.95, 1.0, 0.9], [1.0, 2.0, -3.0, -0.5])
    plain = values(loss_of(moved, batch, step_index, kl_beta=0.5))
    weighted = loss_of(moved, batch, step_index, kl_beta=0.5, reweight_steps=True)
    sigmas = moved.sigmas(4)
    length = (sigmas[step_index] - sigmas[step_index + 1]).item()
    assert values(weighted)["policy/policy_loss"] == pytest.approx(plain["policy/policy_loss"] / length, rel=1e-5)
    assert values(weighted)["policy/kl"] == plain["policy/kl"]
    assert weighted.loss.item() == pytest.approx(
        plain["policy/policy_loss"] / length + 0.5 * plain["policy/kl"], rel=1e-5
    )


def test_normalised_and_reweighted_every_step_pulls_on_the_velocity_with_the_same_weight(policy: SD3Policy) -> None:
    # At ratio 1: d loss / d v = -A z (1 + a^2 / 2) / dims past the first step, whatever the step.
    plan = tiny.sde_plan(num_steps=10, stop=9)
    group = tiny.trajectory(policy, plan=plan, keep_means=True)
    sigmas = policy.sigmas(10)
    for i in range(1, 9):
        scalars = sde.coefficients("sde", sigmas, i, 0.7)
        length = (sigmas[i] - sigmas[i + 1]).item()
        assert abs(scalars.v_scale) / length == pytest.approx(1 + 0.7**2 / 2, rel=1e-5)
        assert group.path is not None
        assert group.path.means is not None
        noise = (group.path.latents[:, i + 1] - group.path.means[:, i]) / scalars.std
        step, _ = replay(policy, group, ALL, i, CPU)
        velocity_mean = (step.mean * (noise / scalars.v_scale)).flatten(1).mean(1)
        by_hand = gradients(policy, -((1 + 0.7**2 / 2) * -velocity_mean).mean())
        batch = TrainBatch(trajectory=group, advantages=torch.ones(4))
        found = gradients(policy, loss_of(policy, batch, i, ratio_norm=True, reweight_steps=True).loss)
        assert torch.allclose(found, by_hand, rtol=1e-2, atol=1e-3 * by_hand.abs().max().item())
