"""Replay of stored sampler steps: with the weights that sampled, the ratio is exactly 1 and the KL exactly 0."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from flowrl.algorithms.configs import FlowGRPOConfig
from flowrl.algorithms.flow_grpo import FlowGRPO
from flowrl.core import sde, seeds
from flowrl.core.sampler import replay
from flowrl.models.sd3 import SD3Policy
from flowrl.types import SamplingPlan, StepKind
from tests import tiny

CPU = torch.device("cpu")


def metrics(policy: SD3Policy, group: Any, samples: slice, step_index: int, **options: Any) -> dict[str, float]:
    algorithm = FlowGRPO(FlowGRPOConfig(**options), seed=0)
    output = algorithm.loss(policy, tiny.train_batch(group), samples, step_index)
    return {metric.key: metric.value for metric in (*output.metrics, *output.drift)}


@pytest.mark.parametrize("guidance_scale", [4.5, 1.0], ids=["guided", "unguided"])
@pytest.mark.parametrize("samples_per_forward", [4, 2, 1])
@pytest.mark.parametrize("kind", ["sde", "cps"])
def test_the_first_ratio_is_exactly_1_and_the_kl_to_the_base_exactly_0(
    policy: SD3Policy, kind: StepKind, samples_per_forward: int, guidance_scale: float
) -> None:
    group = tiny.trajectory(
        policy,
        plan=tiny.sde_plan(kind=kind),
        samples_per_forward=samples_per_forward,
        guidance_scale=guidance_scale,
    )
    form = "gaussian" if kind == "sde" else "velocity"
    for start in range(0, 4, samples_per_forward):
        for i in group.plan.trained:
            part = slice(start, start + samples_per_forward)
            found = metrics(policy, group, part, i, step_kind=kind, kl_form=form, kl_beta=0.1)
            assert found["policy/ratio_absdev_max"] == 0.0
            assert found["policy/logp_absdiff_max"] == 0.0
            assert found["policy/kl"] == 0.0


def test_a_moved_adapter_replays_its_own_samples_at_ratio_1_too(policy: SD3Policy) -> None:
    group = tiny.trajectory(tiny.perturb(policy), keep_means=True)
    for i in group.plan.trained:
        found = metrics(policy, group, slice(0, 4), i, kl_beta=0.1, ratio_norm=True)
        assert found["policy/ratio_absdev_max"] == 0.0
        assert found["policy/kl"] > 0


def test_other_parts_than_the_rollouts_drift_no_further_than_rounding(policy: SD3Policy) -> None:
    group = tiny.trajectory(tiny.perturb(policy), samples_per_forward=4)
    for i in group.plan.trained:
        assert metrics(policy, group, slice(1, 3), i)["policy/ratio_absdev_max"] < 2e-5


def test_after_a_change_of_the_weights_the_ratio_is_no_longer_1(policy: SD3Policy) -> None:
    group = tiny.trajectory(policy)
    tiny.perturb(policy, scale=1e-2)
    for i in group.plan.trained:
        assert metrics(policy, group, slice(0, 4), i)["policy/ratio_absdev_max"] > 1e-6


@pytest.mark.parametrize(("start", "stop"), [(1, 2), (2, 4), (1, 4)])
def test_a_window_replays_at_the_noise_levels_it_was_sampled_at(policy: SD3Policy, start: int, stop: int) -> None:
    kinds: tuple[StepKind, ...] = tuple("sde" if start <= i < stop else "ode" for i in range(5))
    plan = SamplingPlan(kinds=kinds, noise_level=0.7, start=start, stop=stop)
    group = tiny.trajectory(tiny.perturb(policy), plan=plan)
    assert [metrics(policy, group, slice(0, 4), i)["policy/ratio_absdev_max"] for i in range(start, stop)] == [0.0] * (
        stop - start
    )


@pytest.mark.parametrize("wrong", ["guidance", "negative", "next latents", "step"])
def test_a_replay_that_differs_from_the_rollout_in_anything_is_seen_in_the_ratio(policy: SD3Policy, wrong: str) -> None:
    group = tiny.trajectory(policy)
    assert group.path is not None
    changed = {
        "guidance": replace(group, guidance_scale=4.4),
        "negative": replace(group, negative=tiny.random_condition(99)),
        "next latents": replace(group, path=replace(group.path, latents=group.path.latents.bfloat16().float())),
        "step": replace(group, plan=SamplingPlan(kinds=("sde",) * 5, noise_level=0.7, start=0, stop=3)),
    }[wrong]
    assert max(metrics(policy, changed, slice(0, 4), i)["policy/ratio_absdev_max"] for i in (0, 1, 2)) > 1e-5


def test_what_is_stored_are_the_transitions_of_the_trained_steps_and_no_others(policy: SD3Policy) -> None:
    full = tiny.trajectory(policy, plan=tiny.sde_plan(num_steps=5, start=0, stop=4), keep_means=True)
    part = tiny.trajectory(policy, plan=tiny.sde_plan(num_steps=5, start=1, stop=3), keep_means=True)
    assert full.path is not None
    assert part.path is not None
    assert torch.equal(full.final_latents, part.final_latents)
    assert torch.equal(part.path.latents, full.path.latents[:, 1:4])
    assert torch.equal(part.path.log_probs, full.path.log_probs[:, 1:3])
    assert full.path.means is not None
    assert part.path.means is not None
    assert torch.equal(part.path.means, full.path.means[:, 1:3])
    for tensor in (part.path.latents, part.path.log_probs, part.path.means, part.final_latents):
        assert tensor.dtype == torch.float32
    assert [type(i) for i in part.plan.trained] == [int, int]
    for i in (0, 3):
        with pytest.raises(ValueError, match=rf"sampler step {i} is not stored"):
            replay(policy, part, slice(0, 4), i, CPU)


def test_a_sampled_path_is_what_a_loop_by_hand_gives(policy: SD3Policy) -> None:
    tiny.perturb(policy)
    plan = SamplingPlan(kinds=("ode", "sde", "sde", "ode"), noise_level=0.7, start=1, stop=3)
    group = tiny.trajectory(policy, plan=plan)
    assert group.path is not None
    sigmas = policy.sigmas(4)
    x = seeds.initial_noise(group.seeds, tiny.SHAPE)
    for i, kind in enumerate(plan.kinds):
        with torch.no_grad():
            velocity = policy.velocity(x, sigmas[i], group.condition, group.negative, 4.5)
        step = sde.transition(kind, x, velocity, sigmas, i, 0.7)
        if kind == "ode":
            x = step.mean
            continue
        assert torch.equal(group.path.latents[:, i - 1], x)
        noise = seeds.step_noise(group.seeds, tiny.SHAPE, i)
        x = step.mean + step.std * noise
        assert torch.equal(group.path.latents[:, i], x)
        assert torch.equal(group.path.log_probs[:, i - 1], sde.log_prob(step, x))
    assert torch.equal(group.final_latents, x)


def test_the_decoded_latents_are_those_the_last_stored_step_led_to_when_all_are_stored(policy: SD3Policy) -> None:
    group = tiny.trajectory(policy, plan=tiny.sde_plan(num_steps=3, stop=3))
    assert group.path is not None
    assert torch.equal(group.path.latents[:, -1], group.final_latents)
    assert group.path.latents.shape == (4, 4, *tiny.SHAPE)


@pytest.mark.parametrize("samples_per_forward", [4, 2, 1])
def test_the_members_of_a_group_are_different_samples(policy: SD3Policy, samples_per_forward: int) -> None:
    group = tiny.trajectory(policy, samples_per_forward=samples_per_forward)
    assert group.path is not None
    for stored in (group.final_latents, *group.path.latents.unbind(1)):
        distances = torch.pdist(stored.flatten(1))
        assert distances.min() > 1


def test_a_plan_that_stores_nothing_stores_nothing(policy: SD3Policy) -> None:
    group = tiny.trajectory(policy, plan=SamplingPlan(kinds=("ode",) * 3, noise_level=0.0, start=0, stop=0))
    assert group.path is None
    assert group.final_latents.shape == (4, *tiny.SHAPE)


def test_an_ode_step_cannot_be_stored_to_be_trained(policy: SD3Policy) -> None:
    with pytest.raises(ValueError, match="must not be a trained step"):
        tiny.trajectory(policy, plan=SamplingPlan(kinds=("ode",) * 3, noise_level=0.7, start=0, stop=1))
