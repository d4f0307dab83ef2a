"""What every registered reward must do, on the kind of input that it reads."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from flowrl.actors.reward_loading import LatentSource, check_rewards, make_reward
from flowrl.config import RewardSpec
from flowrl.pocket.reward_inputs import latent_batch, pixel_batch
from flowrl.protocols import CheckableReward
from flowrl.registry import BUILT_IN, resolve
from flowrl.reward_check import CONTRACT, Trial, members
from tests.contract.made import OPTIONS

WITHOUT_GRADIENT = {"http"}


@dataclass(frozen=True, kw_only=True)
class Made:
    """A reward as the registry makes it, and four samples for it."""

    spec: RewardSpec
    trial: Trial


@pytest.fixture(params=sorted(BUILT_IN["reward"]), scope="module")
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    name = request.param
    spec = RewardSpec(name=name, options=dict(OPTIONS[name](tmp_path_factory.mktemp(name))))
    reward = make_reward(spec)
    batch = latent_batch(reward.latent_space) if reward.latent_space is not None else pixel_batch()
    return Made(spec=spec, trial=Trial(reward=reward, batch=batch))


def test_every_registered_reward_is_held_to_the_contract() -> None:
    assert OPTIONS.keys() == BUILT_IN["reward"].keys()


def test_it_has_the_members_of_a_reward(made: Made) -> None:
    finding = members(made.trial.reward)
    assert finding.verdict == "ok", finding.found


@pytest.mark.parametrize("check", CONTRACT)
def test_it_keeps_what_a_reward_promises(made: Made, check: str) -> None:
    finding = CONTRACT[check](made.trial)
    assert finding.verdict != "FAIL", finding.found


def test_a_batch_without_input_is_refused_in_words_that_say_what_it_must_hold(made: Made) -> None:
    bare = replace(made.trial.batch, latents=None, condition=None, pixels=None)
    with pytest.raises(ValueError, match="the batch must hold"):
        made.trial.reward(bare)


def test_the_gradient_with_respect_to_latents_is_finite_and_not_zero(made: Made) -> None:
    if made.trial.batch.latents is None or made.spec.name in WITHOUT_GRADIENT:
        return
    latents = made.trial.batch.latents.clone().requires_grad_()
    scores = made.trial.reward(replace(made.trial.batch, latents=latents))
    (slope,) = torch.autograd.grad(scores.sum(), latents)
    assert slope.isfinite().all()
    assert (slope.flatten(1).norm(dim=1) > 0).all()


def test_its_files_can_be_checked_without_loading_them(made: Made) -> None:
    space = made.trial.reward.latent_space
    check_rewards([made.spec], LatentSource(latent_space=space or "any"), "cpu")
    if isinstance(resolve("reward", made.spec.name)[0], CheckableReward) and space is not None:
        says = f"{made.spec.name!r} reads latents of {space}, but the policy makes latents of vae4"
        with pytest.raises(ValueError, match=says):
            check_rewards([made.spec], LatentSource(latent_space="vae4"), "cpu")
