"""The learner: its gradients, AdamW, inner steps and moving average against closed forms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flowrl.actors.learner import Learner, TrainingError
from flowrl.algorithms.configs import FlowGRPOConfig
from flowrl.algorithms.flow_grpo import FlowGRPO
from flowrl.types import TrainBatch, Trajectory
from tests import tiny
from tests.learners import LOOSE, advantages, learner, metric, optimizer_of, rolled, weights


def gradients_of_update(trained: Learner, batch: list[Trajectory]) -> torch.Tensor:
    captured: list[torch.Tensor] = []

    def capture(*_: Any) -> None:
        captured.append(torch.cat([p.grad.flatten() for _, p in trained._policy.trainable() if p.grad is not None]))

    optimizer_of(trained).register_step_pre_hook(capture)
    trained.update(1, advantages(len(batch)), *batch)
    [gradient] = captured
    return gradient.clone()


def moved(folder: Path, **options: Any) -> Learner:
    trained = learner(folder, clip_norm=1e9, **options)
    tiny.perturb(trained._policy)  # type: ignore[arg-type]
    return trained


@pytest.mark.parametrize("part", [2, 1])
def test_however_a_batch_is_cut_the_gradient_is_that_of_its_mean_loss(sd3_folder: Path, part: int) -> None:
    whole = moved(sd3_folder)
    batch = rolled(whole)
    policy = whole._policy
    algorithm = FlowGRPO(FlowGRPOConfig(kl_beta=0.05), seed=0)
    losses = [
        algorithm.loss(policy, TrainBatch(trajectory=group, advantages=a), slice(0, 4), i).loss
        for group, a in zip(batch, advantages(), strict=True)
        for i in range(3)
    ]
    parameters = [parameter for _, parameter in policy.trainable()]
    by_hand = torch.cat([g.flatten() for g in torch.autograd.grad(torch.stack(losses).mean(), parameters)])
    in_one = gradients_of_update(whole, batch)
    in_parts = gradients_of_update(moved(sd3_folder, part=part, gate=LOOSE), batch)
    largest = by_hand.abs().max().item()
    assert largest > 1e-4
    assert torch.allclose(in_one, by_hand, rtol=1e-4, atol=1e-5 * largest)
    # A forward of fewer samples rounds differently, and the ratio leaves 1 by that; no further.
    assert torch.allclose(in_parts, by_hand, rtol=1e-2, atol=1e-3 * largest)


def test_checkpointed_activations_change_no_bit_of_the_gradient(sd3_folder: Path) -> None:
    kept, recomputed = moved(sd3_folder), moved(sd3_folder)
    batch = rolled(kept)
    recomputed._policy.checkpoint_activations()
    assert torch.equal(gradients_of_update(recomputed, batch), gradients_of_update(kept, batch))


def test_parts_that_equal_the_rollouts_pass_the_gate_at_exactly_0(sd3_folder: Path) -> None:
    trained = learner(sd3_folder, part=2)
    result = trained.update(1, advantages(), *rolled(trained, samples_per_forward=2))
    assert metric(result.metrics, "policy/ratio_absdev_max") == [0.0] * 2 * 2 * 3


def test_two_optimizer_steps_are_adamw_by_hand_on_the_clipped_gradient(sd3_folder: Path) -> None:
    options = {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1, "clip_norm": 0.05}
    trained = learner(sd3_folder, inner_steps=2, **options)
    batch = rolled(trained)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def capture(*_: Any) -> None:
        seen.append(
            (
                weights(trained),
                torch.cat([p.grad.flatten() for _, p in trained._policy.trainable() if p.grad is not None]),
            )
        )

    optimizer_of(trained).register_step_pre_hook(capture)
    norms = metric(trained.update(1, advantages(), *batch).metrics, "policy/grad_norm")
    assert len(seen) == len(norms) == 2
    first_moment, second_moment = torch.zeros(()), torch.zeros(())
    expected = seen[0][0].double()
    for count, ((before, gradient), norm) in enumerate(zip(seen, norms, strict=True), start=1):
        assert torch.allclose(before.double(), expected, atol=1e-7)
        assert norm > 0.05
        assert gradient.norm().item() == pytest.approx(0.05, rel=1e-4)
        gradient = gradient.double()
        first_moment = 0.8 * first_moment + 0.2 * gradient
        second_moment = 0.95 * second_moment + 0.05 * gradient.square()
        direction = (first_moment / (1 - 0.8**count)) / ((second_moment / (1 - 0.95**count)).sqrt() + 1e-6)
        expected = expected * (1 - 1e-2 * 0.1) - 1e-2 * direction
    assert torch.allclose(weights(trained).double(), expected, atol=1e-7)


def test_each_inner_step_trains_its_own_share_of_the_groups_in_order(sd3_folder: Path) -> None:
    two = learner(sd3_folder, inner_steps=2)
    batch, values = rolled(two), advantages()
    result = two.update(1, values, *batch)
    assert result.policy_version == 2
    assert metric(result.metrics, "policy/version") == [2]
    one = learner(sd3_folder, inner_steps=1, gate=LOOSE)
    one.update(1, values[:1], *batch[:1])
    assert not torch.equal(weights(one), weights(two))
    one.update(2, values[1:], replace(batch[1], policy_version=1))
    assert torch.equal(weights(one), weights(two))


def test_drift_is_reported_of_the_first_inner_step_alone(sd3_folder: Path) -> None:
    trained = learner(sd3_folder, inner_steps=2, lr=1e-2)
    result = trained.update(1, advantages(), *rolled(trained))
    for key in ("policy/ratio_absdev_max", "policy/logp_absdiff_max"):
        assert metric(result.metrics, key) == [0.0] * 3
    for i in range(3):
        assert metric(result.metrics, f"policy/ratio_absdev_step_{i}") == [0.0]
    assert len(metric(result.metrics, "policy/kl")) == 2 * 3
    assert max(metric(result.metrics, "policy/clip_fraction")) > 0  # the second one moved away, as it should


@pytest.mark.parametrize(("decay", "every"), [(0.9, 1), (0.2, 1), (0.9, 2)])
def test_the_moving_average_is_its_closed_form(sd3_folder: Path, decay: float, every: int) -> None:
    trained = learner(sd3_folder, ema_decay=decay, ema_every=every, lr=1e-2)
    history = [weights(trained).double()]
    for step in range(1, 6):
        trained.update(step, advantages(2), *rolled(trained, count=2))
        history.append(weights(trained).double())
    expected = history[0]
    for version in range(every, 6, every):
        kept = min(decay, (1 + version) / (10 + version))
        expected = kept * expected + (1 - kept) * history[version]
    assert torch.allclose(weights(trained, ema=True).double(), expected, atol=1e-6)
    assert not torch.allclose(weights(trained, ema=True), weights(trained), atol=1e-4)


def test_normalised_ratios_use_the_stored_means(sd3_folder: Path) -> None:
    trained = learner(sd3_folder, ratio_norm=True, reweight_steps=True, inner_steps=2, lr=1e-2)
    assert FlowGRPO(FlowGRPOConfig(ratio_norm=True), seed=0).needs_means
    result = trained.update(1, advantages(), *rolled(trained, keep_means=True))
    assert metric(result.metrics, "policy/ratio_absdev_max") == [0.0] * 3
    assert weights(trained).isfinite().all()


def test_groups_sampled_with_other_weights_are_refused(sd3_folder: Path) -> None:
    trained = learner(sd3_folder)
    stale = rolled(trained)
    trained.update(1, advantages(), *stale)
    with pytest.raises(TrainingError, match=r"with weights of version \[0\], but those to be trained are version 1"):
        trained.update(2, advantages(), *stale)
