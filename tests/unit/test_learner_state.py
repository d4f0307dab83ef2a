"""The learner: what stops it before weights change, and what it carries from one process to the next."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from flowrl.actors.fused import Fused
from flowrl.actors.learner import Learner, TrainingError
from flowrl.algorithms.configs import FlowGRPOConfig
from flowrl.config import OptimSection
from flowrl.types import Prompt, RolloutRequest, Trajectory, UpdateResult
from tests import tiny
from tests.learners import EXACT, advantages, groups, learner, metric, rolled, weights


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
    assert AcceleratorState().mixed_precision == "no"
    result = trained.update(1, advantages(), *groups(tiny.policy(sd3_folder)))
    assert metric(result.metrics, "policy/ratio_absdev_max") == [0.0] * 6


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
