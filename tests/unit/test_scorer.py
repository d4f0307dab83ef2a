"""The scorer: what each kind of reward is given, how scores are combined, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from flowrl.actors.scorer import Scorer
from flowrl.config import ConfigError, RewardSpec
from flowrl.core.reward_sum import group_z_scores
from flowrl.models.sd3 import SD3, SD3Decoder, SD3Policy
from flowrl.reward_call import RewardCallError
from flowrl.types import Trajectory
from tests import tiny
from tests.cheap_rewards import BRIGHT, BRIGHT_KEY, LATENT, LATENT_KEY


def spec(name: str, weight: float = 1.0, **options: Any) -> RewardSpec:
    return RewardSpec(name=name, weight=weight, options=options)


def scorer(folder: Path, train: list[RewardSpec], watch: list[RewardSpec] | None = None) -> Scorer:
    return Scorer(tiny.model_spec(folder), train, watch or [], sharded=False, timeout_s=10, shows_images=True)


@pytest.fixture
def group(policy: SD3Policy) -> Trajectory:
    """Five samples, which no batch size of the rewards divides."""
    return tiny.trajectory(policy, num_samples=5)


def latent_scores(group: Trajectory, target: float = 0.5) -> torch.Tensor:
    return -(group.final_latents - target).square().flatten(1).mean(1).sqrt()


def test_a_latent_reward_reads_the_final_latents_and_nothing_is_decoded(
    sd3_folder: Path, group: Trajectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SD3Decoder, "decode", lambda *_: pytest.fail("decoded"))
    scores = scorer(sd3_folder, [spec(LATENT)]).score(group)
    assert torch.equal(scores.per_reward[LATENT_KEY], latent_scores(group))
    assert torch.equal(scores.total, latent_scores(group))
    assert scores.valid.tolist() == [True] * 5
    assert scores.images is None
    assert scores.trajectory_bytes == group.num_bytes > group.final_latents.nbytes


def test_pixel_rewards_read_one_decode_of_the_final_latents(
    sd3_folder: Path, group: Trajectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = SD3.load_decoder(sd3_folder, device="cpu")
    pixels = torch.cat([decoder.decode(part) for part in group.final_latents.split(4)])
    judge = scorer(sd3_folder, [spec(BRIGHT)], [spec(LATENT)])
    decode, calls = SD3Decoder.decode, []
    monkeypatch.setattr(SD3Decoder, "decode", lambda self, given: calls.append(given) or decode(self, given))
    scores = judge.evaluate(group, num_images=2)
    assert [len(given) for given in calls] == [4, 1]  # so that the VAE never has more than four
    assert torch.equal(torch.cat(calls), group.final_latents)
    assert torch.allclose(scores.per_reward[BRIGHT_KEY], pixels.flatten(1).mean(1), atol=1e-6)
    assert torch.equal(scores.per_reward[LATENT_KEY], latent_scores(group))
    assert scores.images is not None
    assert torch.equal(scores.images, (pixels[:2] * 255).round().to(torch.uint8))


@pytest.mark.parametrize(
    ("train", "watch", "shows_images", "loads"),
    [
        ([LATENT], [], False, 0),
        ([LATENT], [], True, 1),
        ([BRIGHT], [], False, 1),
        ([LATENT], [BRIGHT], False, 1),
    ],
)
def test_the_decoder_is_loaded_at_the_start_or_not_at_all(
    sd3_folder: Path,
    group: Trajectory,
    monkeypatch: pytest.MonkeyPatch,
    train: list[str],
    watch: list[str],
    shows_images: bool,
    loads: int,
) -> None:
    load, loaded = SD3.load_decoder, []
    monkeypatch.setattr(
        SD3, "load_decoder", staticmethod(lambda path, *, device: loaded.append(path) or load(path, device=device))
    )
    judge = Scorer(
        tiny.model_spec(sd3_folder),
        [spec(name) for name in train],
        [spec(name) for name in watch],
        sharded=False,
        timeout_s=10,
        shows_images=shows_images,
    )
    assert len(loaded) == loads
    assert (judge.evaluate(group, num_images=5 if shows_images else 0).images is not None) == shows_images
    assert len(loaded) == loads


def test_a_sample_comes_with_its_own_seed_and_the_prompt_of_its_group(sd3_folder: Path, group: Trajectory) -> None:
    [scores] = scorer(sd3_folder, [spec("tests.cheap_rewards:SeedEcho")]).score(group).per_reward.values()
    assert torch.allclose(scores, (group.seeds % 1000).float() + len(group.prompt.text) / 1000)
    assert len(scores.unique()) == 5


def test_scores_are_summed_with_their_weights_and_watched_ones_are_not(sd3_folder: Path, group: Trajectory) -> None:
    judge = scorer(sd3_folder, [spec(LATENT, 2.0), spec(BRIGHT, -0.5)], [spec("tests.cheap_rewards:WrongShape")])
    scores = judge.score(group)  # the watched reward would raise
    assert set(scores.per_reward) == {LATENT_KEY, BRIGHT_KEY}
    expected = 2 * scores.per_reward[LATENT_KEY] - 0.5 * scores.per_reward[BRIGHT_KEY]
    assert torch.allclose(scores.total, expected, atol=1e-6)


def test_scores_are_shifted_and_scaled_for_the_sum_and_logged_as_they_are(sd3_folder: Path, group: Trajectory) -> None:
    affine = RewardSpec(name=LATENT, weight=3.0, shift=2.0, scale=0.25)
    scores = scorer(sd3_folder, [affine]).score(group)
    assert torch.equal(scores.per_reward[LATENT_KEY], latent_scores(group))
    assert torch.allclose(scores.total, 3 * (latent_scores(group) + 2) / 4, atol=1e-6)


def test_a_reward_normalised_by_group_weighs_as_much_whatever_its_scale(sd3_folder: Path, group: Trajectory) -> None:
    one = RewardSpec(name=LATENT, weight=2.0, normalise="group")
    thousandfold = RewardSpec(name=LATENT, weight=2.0, normalise="group", scale=1000.0)
    total, other = (scorer(sd3_folder, [spec]).score(group).total for spec in (one, thousandfold))
    values = latent_scores(group).double()  # the group is two batches of this reward, and normalised as one
    assert total.tolist() == pytest.approx((2 * (values - values.mean()) / values.std(correction=0)).tolist(), abs=1e-4)
    assert torch.allclose(total, other, atol=1e-4)


def test_the_sum_is_also_told_as_it_was_before_it_was_normalised(sd3_folder: Path, group: Trajectory) -> None:
    first = RewardSpec(name=LATENT, weight=3.0, shift=2.0, scale=0.25, normalise="group")
    scores = scorer(sd3_folder, [first, spec(BRIGHT, 2.0)]).score(group)
    expected = 3 * (latent_scores(group) + 2) / 4 + 2 * scores.per_reward[BRIGHT_KEY]
    assert torch.allclose(scores.unnormalised, expected, atol=1e-6)
    alone = scorer(sd3_folder, [first]).score(group)
    assert abs(alone.total.mean()) < 1e-4 < abs(alone.unnormalised.mean())


def test_the_same_reward_stands_twice_under_two_labels(sd3_folder: Path, group: Trajectory) -> None:
    near = RewardSpec(name=LATENT, label="near", options={"target": 0.5})
    far = RewardSpec(name=LATENT, label="far", options={"target": 5.0}, weight=-1.0)
    scores = scorer(sd3_folder, [near, far]).score(group)
    assert torch.equal(scores.per_reward["near"], latent_scores(group, 0.5))
    assert torch.equal(scores.per_reward["far"], latent_scores(group, 5.0))
    assert torch.equal(scores.total, latent_scores(group, 0.5) - latent_scores(group, 5.0))


def test_a_watched_reward_is_scored_at_evaluations_and_enters_no_sum(sd3_folder: Path, group: Trajectory) -> None:
    watched = RewardSpec(name=BRIGHT, weight=100.0, normalise="group")
    judge = scorer(sd3_folder, [spec(LATENT)], [watched])
    evaluated = judge.evaluate(group, num_images=0)
    assert evaluated.per_reward[BRIGHT_KEY].std() > 0
    assert torch.equal(evaluated.total, latent_scores(group))
    assert BRIGHT_KEY not in judge.score(group).per_reward


def test_a_score_that_is_not_finite_masks_its_sample_and_is_never_zero(sd3_folder: Path, group: Trajectory) -> None:
    scores = scorer(sd3_folder, [spec(LATENT, nan_every=2), spec(BRIGHT)]).score(group)
    # Batches of 3 and 2 samples, of which every second fails.
    assert scores.valid.tolist() == [False, True, False, False, True]
    assert scores.total[~scores.valid].isnan().all()
    assert scores.per_reward[BRIGHT_KEY].isfinite().all()


def test_a_sample_that_one_reward_cannot_score_has_no_total_and_moves_no_z_score(
    sd3_folder: Path, group: Trajectory
) -> None:
    failing = RewardSpec(name=LATENT, normalise="group", options={"nan_every": 2})
    scores = scorer(sd3_folder, [failing, RewardSpec(name=BRIGHT, normalise="group")]).score(group)
    assert scores.valid.tolist() == [False, True, False, False, True]
    low, high = sorted(latent_scores(group)[[1, 4]].tolist())
    assert low < high  # of two samples the z-scores are 1 and -1
    bright = group_z_scores(scores.per_reward[BRIGHT_KEY])
    assert sorted((scores.total - bright)[[1, 4]].tolist()) == pytest.approx([-1, 1], abs=1e-4)


def test_a_reward_of_the_wrong_shape_is_an_error_that_names_it(sd3_folder: Path, group: Trajectory) -> None:
    judge = scorer(sd3_folder, [spec("tests.cheap_rewards:WrongShape")])
    with pytest.raises(RewardCallError, match=r"'wrong_shape' must return one score per sample, \[2\], got \[\]$"):
        judge.score(group)


def test_a_reward_that_fails_is_an_error_and_not_a_score(sd3_folder: Path, group: Trajectory) -> None:
    judge = scorer(sd3_folder, [spec("tests.cheap_rewards:Broken")])
    with pytest.raises(RewardCallError, match=r"'broken' .* fails on a batch .* RuntimeError: the judge has left the"):
        judge.score(group)


@pytest.mark.parametrize("part", ["train", "watch"])
def test_a_latent_reward_of_another_latent_space_is_refused_at_the_start(sd3_folder: Path, part: str) -> None:
    other = spec(LATENT, latent_space="vae16x8-scale0.36-shift0.12")
    specs = {"train": [spec(BRIGHT)], "watch": [], part: [other]}
    with pytest.raises(
        ConfigError,
        match=r"reads latents of vae16x8-scale0\.36-shift0\.12, but the policy makes latents of vae16x8-scale1\.53",
    ):
        scorer(sd3_folder, **specs)


def test_options_that_a_reward_does_not_have_are_refused(sd3_folder: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"the options \{'colour': 1\} do not fit reward 'tests.cheap_rewards:Brightness'"
    ):
        scorer(sd3_folder, [spec(BRIGHT, colour=1)])


def test_diversity_is_the_mean_distance_between_the_samples_of_a_group(sd3_folder: Path, policy: SD3Policy) -> None:
    judge = scorer(sd3_folder, [spec(LATENT)])
    flat = (group := tiny.trajectory(policy, num_samples=3)).final_latents.flatten(1)
    pairs = [(flat[i] - flat[j]).square().mean().sqrt() for i, j in ((0, 1), (0, 2), (1, 2))]
    assert judge.score(group).diversity == pytest.approx(torch.stack(pairs).mean().item(), rel=1e-5)
    assert judge.score(tiny.trajectory(policy, num_samples=1)).diversity == 0
