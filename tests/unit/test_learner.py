"""The learner: gradients, AdamW, moving average, resuming, and what makes it stop before weights change."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from flowrl.actors.fused import Fused
from flowrl.actors.learner import Learner, TrainingError
from flowrl.algorithms.configs import FlowGRPOConfig
from flowrl.algorithms.flow_grpo import FlowGRPO
from flowrl.config import GateSection, OptimSection
from flowrl.models.sd3 import SD3Policy
from flowrl.types import Metric, Prompt, RolloutRequest, TrainBatch, Trajectory, UpdateResult
from tests import tiny

EXACT = GateSection(max_ratio_absdev=0.0)
LOOSE = GateSection(max_ratio_absdev=1.0)


def learner(folder: Path, *, part: int = 0, gate: GateSection = EXACT, **options: Any) -> Learner:
    optim = {key: options.pop(key) for key in list(options) if key in OptimSection.__dataclass_fields__}
    algorithm = FlowGRPOConfig(**{"inner_steps": 1, "kl_beta": 0.05, **options})
    return Learner(tiny.model_spec(folder), algorithm, OptimSection(**optim), gate, part)


def groups(policy: SD3Policy, count: int = 2, **options: Any) -> list[Trajectory]:
    return [tiny.trajectory(policy, prompt_id=i, **options) for i in range(count)]


def advantages(count: int = 2) -> list[torch.Tensor]:
    return [torch.randn(4, generator=torch.Generator().manual_seed(i)) for i in range(count)]


def weights(trained: Learner | Fused, *, ema: bool = False) -> torch.Tensor:
    return torch.from_numpy(trained.weights(ema=ema).payload.view("float32").copy())


def metric(metrics: list[Metric], key: str) -> list[float]:
    found = [one.value for one in metrics if one.key == key]
    assert found, f"no {key}"
    return found


def rolled(trained: Learner, **options: Any) -> list[Trajectory]:
    """Groups sampled with the weights that a learner has now, by its own policy."""
    policy = trained._policy
    assert isinstance(policy, SD3Policy)
    return groups(policy, **options)


def gradients_of_update(trained: Learner, batch: list[Trajectory]) -> torch.Tensor:
    captured: list[torch.Tensor] = []

    def capture(*_: Any) -> None:
        captured.append(torch.cat([p.grad.flatten() for _, p in trained._named if p.grad is not None]))

    trained._optimizer.register_step_pre_hook(capture)
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
        seen.append((weights(trained), torch.cat([p.grad.flatten() for _, p in trained._named if p.grad is not None])))

    trained._optimizer.register_step_pre_hook(capture)
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
    one.update(2, values[1:], *batch[1:])
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


@pytest.mark.parametrize("step", [0, 2, 5])
def test_a_step_that_is_not_due_is_refused(sd3_folder: Path, step: int) -> None:
    trained = learner(sd3_folder)
    before = weights(trained)
    with pytest.raises(TrainingError, match=f"step {step} was asked for, but step 1 is due"):
        trained.update(step, advantages(), *rolled(trained))
    assert torch.equal(weights(trained), before)


def test_a_step_is_not_trained_twice(sd3_folder: Path) -> None:
    trained = learner(sd3_folder)
    batch = rolled(trained)
    trained.update(1, advantages(), *batch)
    with pytest.raises(TrainingError, match="step 1 was asked for, but step 2 is due"):
        trained.update(1, advantages(), *batch)


def harmed(batch: list[Trajectory], harm: str) -> list[Trajectory]:
    path = batch[-1].path
    assert path is not None
    latents, log_probs = path.latents.clone(), path.log_probs.clone()
    if harm == "log-prob":
        log_probs[1, 2] += 1e-2
    elif harm == "nan log-prob":
        log_probs[1, 2] = float("nan")
    else:
        latents[2, 1] = float("nan")
    return [*batch[:-1], replace(batch[-1], path=replace(path, latents=latents, log_probs=log_probs))]


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        ("log-prob", r"the ratio must be 1, but deviates by 0.00995.*gate.max_ratio_absdev is 0"),
        ("nan log-prob", "the ratio must be 1, but deviates by nan"),
        ("nan latents", "the ratio must be 1, but deviates by nan"),
        ("nan advantage", "the gradient norm is nan; the optimizer step .* was not taken"),
        ("infinite advantage", "the gradient norm is (nan|inf); the optimizer step .* was not taken"),
    ],
)
def test_numbers_that_cannot_be_trusted_stop_the_learner_before_anything_changes(
    sd3_folder: Path, harm: str, says: str
) -> None:
    trained = learner(sd3_folder)
    batch, values = rolled(trained), advantages()
    before, average = weights(trained), weights(trained, ema=True)
    bad = [value.clone() for value in values]
    if "advantage" in harm:
        bad[1][1] = float("nan") if harm.startswith("nan") else float("inf")
    with pytest.raises(TrainingError, match=says):
        trained.update(1, bad, *(batch if "advantage" in harm else harmed(batch, harm)))
    assert torch.equal(weights(trained), before)
    assert torch.equal(weights(trained, ema=True), average)
    # Nothing of the failed attempt is left: the step can be done with good numbers, as if it had not been.
    trained.update(1, values, *batch)
    fresh = learner(sd3_folder)
    fresh.update(1, values, *batch)
    assert torch.equal(weights(trained), weights(fresh))


def test_a_step_without_any_advantage_changes_nothing_but_the_decay(sd3_folder: Path) -> None:
    trained = learner(sd3_folder, kl_beta=0.0, weight_decay=0.0)
    before = weights(trained)
    trained.update(1, [torch.zeros(4)] * 2, *rolled(trained))
    assert torch.equal(weights(trained), before)


@pytest.mark.parametrize("fused", [False, True], ids=["learner", "fused"])
def test_saving_and_loading_then_going_on_equals_never_having_stopped(
    sd3_folder: Path, tmp_path: Path, fused: bool
) -> None:
    def start() -> Learner | Fused:
        if not fused:
            return learner(sd3_folder, ema_every=1)
        return Fused(tiny.model_spec(sd3_folder), FlowGRPOConfig(inner_steps=1), OptimSection(ema_every=1), EXACT, 0)

    def sampled(trained: Learner | Fused) -> list[Trajectory]:
        return rolled(trained._learner if isinstance(trained, Fused) else trained)

    whole = start()
    for step in (1, 2):
        whole.update(step, advantages(), *sampled(whole))
    whole.save(str(tmp_path))
    results: list[UpdateResult] = []
    resumed = start()
    resumed.load(str(tmp_path))
    for trained in (whole, resumed):
        for step in (3, 4):
            results.append(trained.update(step, advantages(), *sampled(trained)))
    assert torch.equal(weights(whole), weights(resumed))
    assert torch.equal(weights(whole, ema=True), weights(resumed, ema=True))
    assert results[:2] == results[2:]
    assert resumed.weights(ema=False).version == 4


def test_a_full_disk_is_an_error_that_says_so(sd3_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "ema.safetensors").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as raised:
        learner(sd3_folder).save(str(tmp_path))
    assert raised.value.errno == errno.ENOSPC


def test_precision_is_that_of_the_configuration_and_not_of_the_environment(
    sd3_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    AcceleratorState._reset_state(reset_partial_state=True)
    trained = learner(sd3_folder)
    assert trained._accelerator.mixed_precision == "no"
    result = trained.update(1, advantages(), *groups(tiny.policy(sd3_folder)))
    assert metric(result.metrics, "policy/ratio_absdev_max") == [0.0] * 6


def test_normalised_ratios_use_the_stored_means(sd3_folder: Path) -> None:
    trained = learner(sd3_folder, ratio_norm=True, reweight_steps=True, inner_steps=2, lr=1e-2)
    assert FlowGRPO(FlowGRPOConfig(ratio_norm=True), seed=0).needs_means
    result = trained.update(1, advantages(), *rolled(trained, keep_means=True))
    assert metric(result.metrics, "policy/ratio_absdev_max") == [0.0] * 3
    assert weights(trained).isfinite().all()


def test_what_a_fused_rollout_samples_with_never_reaches_training(sd3_folder: Path) -> None:
    fused = Fused(
        tiny.model_spec(sd3_folder), FlowGRPOConfig(inner_steps=1), OptimSection(ema_every=1, lr=1e-2), EXACT, 0
    )
    apart = learner(sd3_folder, ema_every=1, lr=1e-2, kl_beta=0.01)
    request = RolloutRequest(
        prompt=Prompt(id=0, text=tiny.TEXTS[0]), seed=0, step=1, num_samples=4, plan=tiny.sde_plan(), guidance_scale=4.5
    )
    conditions = (tiny.random_condition(10), tiny.random_condition(9))
    for step in (1, 2):
        batch = rolled(apart)
        fused.update(step, advantages(), *batch)
        apart.update(step, advantages(), *batch)
        before = weights(fused)
        average = fused.weights(ema=True)
        fused.load_weights(average)
        with_average = fused.generate(request, *conditions).final_latents
        assert torch.equal(weights(fused), before)
        fused.load_weights(fused.weights(ema=False))
        assert not torch.equal(fused.generate(request, *conditions).final_latents, with_average)
        fused.load_weights(average)  # and is left there when the next update comes
    assert torch.equal(weights(fused), weights(apart))
    assert torch.equal(weights(fused, ema=True), weights(apart, ema=True))
