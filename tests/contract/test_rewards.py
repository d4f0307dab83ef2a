"""What every registered reward must do, on the policy's own kind of input."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache

import pytest
import torch
from diffusers import AutoencoderKL

from flowrl.actors.reward_loading import check_rewards, load_reward
from flowrl.config import RewardSpec
from flowrl.models.sd3 import SD3
from flowrl.pocket.generator import scaled_latents
from flowrl.pocket.locate import checkpoint
from flowrl.pocket.render import render
from flowrl.pocket.scene import Scene
from flowrl.protocols import PromptEncoder, Reward
from flowrl.registry import BUILT_IN
from flowrl.types import RewardInput, TextCondition

SPACE = SD3.latent_space(checkpoint("sd35"))
PROMPTS = ("a large red circle on sand", "a small blue square above a large green triangle on snow")


@cache
def encoder() -> PromptEncoder:
    return SD3.load_encoder(checkpoint("sd35"), max_sequence_length=14, dtype=torch.float32, device="cpu")


@cache
def samples() -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels [4, 3, 64, 64] and latents [4, 16, 8, 8]."""
    scenes = [Scene.parse(prompt) for prompt in PROMPTS * 2]
    images = render(scenes, torch.Generator().manual_seed(3), clean_share=0.0)
    vae = AutoencoderKL.from_pretrained(checkpoint("sd35") / "vae")
    with torch.no_grad():
        latents = scaled_latents(vae, images)
    return SD3.load_decoder(checkpoint("sd35"), device="cpu").decode(latents), latents


@cache
def made(name: str) -> Reward:
    return load_reward(RewardSpec(name=name), SPACE, "cpu")


def batch_for(reward: Reward) -> RewardInput:
    """Four renderings with flaws, as they come out of the policy's VAE; the last prompt is not that of its image."""
    prompts = (*PROMPTS, PROMPTS[0], PROMPTS[1].replace("above", "below"))
    batch = RewardInput(prompts=prompts, seeds=torch.arange(4) + 100)
    pixels, latents = samples()
    if reward.input_kind == "pixel":
        return replace(batch, pixels=pixels)
    conditions = [encoder().encode(prompt) for prompt in prompts]
    condition = TextCondition(
        embeds=torch.cat([one.embeds for one in conditions]), pooled=torch.cat([one.pooled for one in conditions])
    )
    return replace(batch, latents=latents, condition=condition)


def rows(batch: RewardInput, chosen: list[int]) -> RewardInput:
    condition = batch.condition
    if condition is not None:
        condition = TextCondition(embeds=condition.embeds[chosen], pooled=condition.pooled[chosen])
    picked = {
        field.name: value[chosen]
        for field in fields(batch)
        if isinstance(value := vars(batch)[field.name], torch.Tensor)
    }
    return replace(batch, prompts=tuple(batch.prompts[i] for i in chosen), condition=condition, **picked)


@pytest.fixture(params=sorted(BUILT_IN["reward"]))
def reward(request: pytest.FixtureRequest) -> Reward:
    return made(request.param)


def test_it_has_the_members_of_a_reward(reward: Reward) -> None:
    assert reward.name
    assert reward.input_kind in ("latent", "pixel")
    assert (reward.latent_space is None) == (reward.input_kind == "pixel")
    assert reward.batch_size >= 1


def test_scores_are_one_finite_float32_per_sample_and_tell_samples_apart(reward: Reward) -> None:
    scores = reward(batch_for(reward))
    assert scores.shape == (4,)
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()
    assert len(set(scores.tolist())) > 1


def test_the_same_batch_has_the_same_scores(reward: Reward) -> None:
    batch = batch_for(reward)
    state = torch.get_rng_state()
    first = reward(batch)
    assert torch.equal(torch.get_rng_state(), state), "drew from the global generator"
    assert torch.equal(first, reward(batch))


def test_a_score_belongs_to_its_sample_wherever_that_stands(reward: Reward) -> None:
    batch = batch_for(reward)
    scores = reward(batch)
    for chosen in ([2, 0, 3, 1], [1], [3, 2]):
        torch.testing.assert_close(reward(rows(batch, chosen)), scores[chosen], rtol=1e-4, atol=1e-4)


def test_a_batch_of_the_other_kind_is_refused(reward: Reward) -> None:
    batch = batch_for(reward)
    other = replace(batch, latents=None, condition=None, pixels=None)
    with pytest.raises(ValueError, match="the batch must hold"):
        reward(other)


@pytest.mark.parametrize("name", sorted(BUILT_IN["reward"]))
def test_its_files_can_be_checked_without_loading_them(name: str) -> None:
    check_rewards([RewardSpec(name=name)], SPACE, "cpu")
    if made(name).input_kind == "latent":
        with pytest.raises(
            ValueError, match=f"{name!r} reads latents of {SPACE}, but the policy makes latents of vae4"
        ):
            check_rewards([RewardSpec(name=name)], "vae4", "cpu")
