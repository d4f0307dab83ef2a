"""What every registered reward must do, on the kind of input that it reads."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch

from flowrl.base.errors import CheckpointError
from flowrl.config import ConfigError, RewardSpec
from flowrl.pocket.reward_inputs import latent_batch, pixel_batch
from flowrl.registry import BUILT_IN, resolve
from flowrl.reward_check import CONTRACT, Trial, members
from flowrl.reward_loading import LatentSource, check_rewards, files_of, make_reward, preflight
from flowrl.reward_protocols import CheckableReward, FetchableReward
from tests.contract.made import IN_FOLDERS, OPTIONS

LATENT = ("dina_lrm", "dit_reward", "http")  # as made here, the server's is a DiT-Reward
WITHOUT_GRADIENT = {"http"}


@dataclass(frozen=True, kw_only=True)
class Made:
    """A reward as the registry makes it, and four samples for it."""

    spec: RewardSpec
    trial: Trial


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """Makes a reward by its name, once."""

    @cache
    def making(name: str) -> Made:
        spec = RewardSpec(name=name, options=dict(OPTIONS[name](tmp_path_factory.mktemp(name))))
        reward = make_reward(spec)
        batch = latent_batch(reward.latent_space) if reward.latent_space is not None else pixel_batch()
        return Made(spec=spec, trial=Trial(reward=reward, batch=batch))

    return making


@pytest.fixture(params=sorted(BUILT_IN["reward"]), scope="module")
def made(request: pytest.FixtureRequest, make: Callable[[str], Made]) -> Made:
    return make(request.param)


@pytest.fixture(params=LATENT, scope="module")
def latent(request: pytest.FixtureRequest, make: Callable[[str], Made]) -> Made:
    return make(request.param)


def test_every_registered_reward_is_held_to_the_contract() -> None:
    assert OPTIONS.keys() == BUILT_IN["reward"].keys()


def test_it_is_known_which_rewards_read_latents(made: Made) -> None:
    assert (made.trial.reward.input_kind == "latent") == (made.spec.name in LATENT)


def test_it_has_the_members_of_a_reward(made: Made) -> None:
    finding = members(made.trial.reward)
    assert finding.verdict == "ok", finding.found


@pytest.mark.parametrize("check", CONTRACT)
def test_it_keeps_what_a_reward_promises(made: Made, check: str) -> None:
    finding = CONTRACT[check](made.trial)
    assert finding.verdict == "ok", finding.found


def test_a_batch_without_input_is_refused_in_words_that_say_what_it_must_hold(made: Made) -> None:
    bare = replace(made.trial.batch, latents=None, condition=None, pixels=None)
    with pytest.raises(ValueError, match="the batch must hold"):
        made.trial.reward(bare)


def test_a_preflight_says_what_the_reward_reads_without_loading_it(made: Made) -> None:
    space = made.trial.reward.latent_space
    trained = preflight(made.spec)
    assert (trained.latent_space if trained is not None else None) == space
    # A latent reward that has none would be found wanting only in the scorer, minutes into a run.
    assert isinstance(resolve("reward", made.spec.name)[0], CheckableReward)


def test_latents_of_another_space_are_refused_before_it_is_made(latent: Made) -> None:
    space = latent.trial.reward.latent_space
    says = f"{latent.spec.name!r} reads latents of {space}, but the policy makes latents of vae4"
    with pytest.raises(ConfigError, match=says):
        check_rewards([latent.spec], [LatentSource(latent_space="vae4")], "cpu")


def test_scores_of_latents_have_a_gradient_that_is_finite_and_not_zero(latent: Made) -> None:
    assert latent.trial.batch.latents is not None
    latents = latent.trial.batch.latents.clone().requires_grad_()
    scores = latent.trial.reward(replace(latent.trial.batch, latents=latents))
    if latent.spec.name in WITHOUT_GRADIENT:
        assert not scores.requires_grad
        return
    (slope,) = torch.autograd.grad(scores.sum(), latents)
    assert slope.isfinite().all()
    assert (slope.flatten(1).norm(dim=1) > 0).all()


def test_every_reward_that_names_files_is_held_to_them() -> None:
    naming = {name for name in BUILT_IN["reward"] if isinstance(resolve("reward", name)[0], FetchableReward)}
    assert naming == IN_FOLDERS.keys()


@pytest.mark.parametrize("name", IN_FOLDERS)
def test_the_files_that_it_names_are_what_it_opens(name: str, tmp_path: Path) -> None:
    options = dict(IN_FOLDERS[name](tmp_path / "there"))
    spec = RewardSpec(name=name, options=options)
    named = files_of(spec)
    paths = {key: Path(value) for key, value in options.items() if isinstance(value, str) and Path(value).exists()}
    assert {files.option: files.path for files in named} == paths
    for files in named:
        away = files.path.rename(tmp_path / "away")
        with pytest.raises(CheckpointError, match=re.escape(str(files.path))):
            preflight(spec)
        assert files_of(spec) == named  # there or not
        away.rename(files.path)
    make_reward(spec)


def test_what_comes_with_flowrl_is_no_file_to_name() -> None:
    assert all(files_of(RewardSpec(name=name)) == () for name in ("dit_reward", "dit_reward_pixels", "hpsv3", "oracle"))
