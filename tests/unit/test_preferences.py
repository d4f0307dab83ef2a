"""Preference pairs: how the pocket set is made, how pairs are dealt, and how agreement is counted."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from flowrl.core.errors import UserError
from flowrl.pocket import build, oracle
from flowrl.pocket.autoencoder import new_vae
from flowrl.pocket.build_plan import BuildPlan
from flowrl.pocket.fitting import FitPlan
from flowrl.pocket.generator import new_pipeline, scaled_latents
from flowrl.pocket.locate import checkpoint
from flowrl.pocket.preferences import (
    GROUP,
    KINDS,
    SampleTable,
    SetPlan,
    build_table,
    changed,
    choose_scenes,
    edited_images,
    pairs_of,
)
from flowrl.pocket.reward_training import (
    centre,
    dit_reward_config,
    first_groups,
    score_latents,
    train_frozen,
    train_full,
)
from flowrl.pocket.sampling import SamplerSetting, decode, encode_texts, sample_latents
from flowrl.pocket.scene import Scene, all_scenes
from flowrl.types import RewardInput, TextCondition
from rewards.dit_reward import DiTReward
from rewards.dit_reward.model import DiTRewardModel
from rewards.hpsv3 import HPSv3Reward
from rewards.preference import Agreement, PreferencePairs, accuracy
from rewards.training import PairBatcher, bradley_terry_loss, lr_scale

PLAN = SetPlan(policy_train=2, edited_train=2, policy_test=1, edited_test=1)


def pipeline():
    torch.manual_seed(0)
    vae = new_vae()
    vae.register_to_config(shift_factor=0.1, scaling_factor=0.9)
    made = new_pipeline(vae)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> tuple[SampleTable, SampleTable]:
    folder = tmp_path_factory.mktemp("preferences")
    made = pipeline()
    return (
        build_table(made, folder, test=False, seed=1, plan=PLAN),
        build_table(made, folder, test=True, seed=1, plan=PLAN),
    )


def pairs(winner: list[int], loser: list[int], group: list[int] | None = None) -> PreferencePairs:
    zeros = torch.zeros(len(winner), dtype=torch.int64)
    return PreferencePairs(
        winner=torch.tensor(winner),
        loser=torch.tensor(loser),
        group=torch.tensor(group) if group is not None else zeros,
        kind=zeros,
        part=zeros,
        kinds=("policy",),
        parts=("shape",),
    )


def test_a_table_holds_what_was_planned(tables: tuple[SampleTable, SampleTable]) -> None:
    train, test = tables
    assert train.latents.shape == (4 * GROUP, 16, 8, 8)
    assert train.kind.tolist() == [0] * 16 + [1] * 16
    assert test.kind.tolist() == [0] * 8 + [1] * 8
    assert all(not Scene.parse(prompt).is_test for prompt in train.prompts)
    assert all(Scene.parse(prompt).is_test for prompt in test.prompts)
    assert train.same.sum() == 2 * 5  # five of each policy group share a setting
    scenes = [Scene.parse(train.prompts[i]) for i in train.prompt.tolist()]
    judged = oracle.score(train.images / 255, scenes)
    assert torch.equal(judged.total, train.total)
    assert torch.equal(judged.shape, train.parts[:, oracle.PARTS.index("shape")])
    assert len(train.text.embeds) == len(train.prompts) == 4


def test_an_interrupted_build_continues_with_the_same_samples(tmp_path: Path) -> None:
    whole = build_table(pipeline(), tmp_path, test=True, seed=1, plan=PLAN)
    (tmp_path / "test-edited-000.safetensors").unlink()
    again = build_table(pipeline(), tmp_path, test=True, seed=1, plan=PLAN)
    assert torch.equal(whole.latents, again.latents)
    assert torch.equal(whole.total, again.total)


def test_pairs_follow_the_oracle_and_the_margin(tables: tuple[SampleTable, SampleTable]) -> None:
    table = replace(tables[0], total=torch.rand(4 * GROUP, generator=torch.Generator().manual_seed(0)))
    found = pairs_of(table, margin=0.3)
    gap = table.total[found.winner] - table.total[found.loser]
    assert (gap >= 0.3).all()
    assert torch.equal(table.prompt[found.winner], table.prompt[found.loser])
    assert torch.equal(found.group, table.prompt[found.winner])
    expected = 0
    for prompt in range(4):
        totals = table.total[table.prompt == prompt]
        expected += int((totals[:, None] - totals[None, :] >= 0.3).sum())
    assert len(found) == expected
    weighted = (table.parts[found.winner] - table.parts[found.loser]) * torch.tensor([0.3, 0.2, 0.25, 0.25])
    assert torch.equal(found.part, weighted.argmax(1))
    assert found.kinds == KINDS


def test_a_changed_scene_differs_in_one_word_and_stays_in_the_grammar() -> None:
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for scene in all_scenes(test=True)[::40]:
        for _ in range(6):
            new = changed(scene, generator)
            assert Scene.parse(str(new)) == new
            differs = [new.background != scene.background, new.relation != scene.relation]
            for old_thing, new_thing in zip(scene.things, new.things, strict=True):
                differs += [
                    getattr(old_thing, word) != getattr(new_thing, word) for word in ("size", "colour", "shape")
                ]
            assert sum(differs) == 1
            seen.add(differs.index(True))
    assert seen == set(range(8))


def test_the_batched_sampler_is_the_pipeline_at_one_guidance() -> None:
    made = pipeline().to(torch.float32)
    prompts = ["a small red circle on sand", "a large blue square on sky"]
    text, negative = encode_texts(made, prompts), encode_texts(made, [""])
    generator = torch.Generator().manual_seed(4)
    start = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(4))
    setting = SamplerSetting(num_steps=4, guidance=3.0)
    ours = sample_latents(made.transformer, text, negative, setting, generator, shift=3.0)
    theirs = made(
        prompt_embeds=text.embeds,
        pooled_prompt_embeds=text.pooled,
        negative_prompt_embeds=negative.embeds.expand(2, -1, -1),
        negative_pooled_prompt_embeds=negative.pooled.expand(2, -1),
        latents=start,
        num_inference_steps=4,
        guidance_scale=3.0,
        output_type="latent",
        height=64,
        width=64,
    ).images
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    each = SamplerSetting(num_steps=4, guidance=torch.tensor([3.0, 6.0]))
    mixed = sample_latents(made.transformer, text, negative, each, torch.Generator().manual_seed(4), shift=3.0)
    torch.testing.assert_close(mixed[0], ours[0], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(mixed[1], ours[1], atol=1e-3)


def test_batches_deal_each_group_once_per_epoch_and_each_sample_once() -> None:
    table = pairs([0, 1, 3, 5, 5, 6], [1, 2, 4, 6, 7, 7], [0, 0, 1, 2, 2, 2])
    batcher = PairBatcher(table, groups_per_batch=1, seed=3)
    assert batcher.batches_per_epoch == 3
    dealt = [batcher.at(step) for step in range(3)]
    assert sorted(tuple(batch.samples.tolist()) for batch in dealt) == [(0, 1, 2), (3, 4), (5, 6, 7)]
    for batch in dealt:
        found = set(zip(batch.samples[batch.winner].tolist(), batch.samples[batch.loser].tolist(), strict=True))
        assert found <= set(zip(table.winner.tolist(), table.loser.tolist(), strict=True))
    again = PairBatcher(table, groups_per_batch=1, seed=3)
    assert torch.equal(again.at(7).samples, (batcher.at(100), batcher.at(7))[1].samples)
    both = PairBatcher(table, groups_per_batch=2, seed=3).at(0)
    assert both.num_groups == 2
    assert torch.equal(both.group[both.winner], both.group[both.loser])
    with pytest.raises(ValueError, match="there are no pairs to train on"):
        PairBatcher(pairs([], []), groups_per_batch=1, seed=0)


def test_agreement_is_counted_by_kind_and_part() -> None:
    table = PreferencePairs(
        winner=torch.tensor([0, 1, 2, 3]),
        loser=torch.tensor([1, 2, 3, 0]),
        group=torch.zeros(4, dtype=torch.int64),
        kind=torch.tensor([0, 0, 0, 1]),
        part=torch.tensor([0, 1, 1, 0]),
        kinds=("policy", "edited"),
        parts=("shape", "relation"),
    )
    report = accuracy(torch.tensor([3.0, 2.0, 2.0, 1.0]), table)  # the second pair is a tie, the last is wrong
    assert report.overall == Agreement(correct=2, total=4)
    assert report.by_kind == {"policy": Agreement(correct=2, total=3), "edited": Agreement(correct=0, total=1)}
    assert report.by_part["policy"] == {
        "shape": Agreement(correct=1, total=1),
        "relation": Agreement(correct=1, total=2),
    }
    assert report.shares() == {
        "all": 0.5,
        "policy": 0.6667,
        "policy/shape": 1.0,
        "policy/relation": 0.5,
        "edited": 0.0,
        "edited/shape": 0.0,
    }
    low, high = Agreement(correct=80, total=100).interval()
    assert (round(low, 4), round(high, 4)) == (0.7112, 0.8666)
    assert Agreement(correct=0, total=0).interval() == (0.0, 1.0)
    with pytest.raises(ValueError, match=r"needs finite scores, got 2 that are not among 8"):
        accuracy(torch.tensor([3.0, math.nan, 2.0, 1.0]), table)
    with pytest.raises(ValueError, match="must have one length"):
        PreferencePairs(**{**vars(table), "part": torch.tensor([0])})


def test_losses_and_learning_rates() -> None:
    loss = bradley_terry_loss(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0]))
    torch.testing.assert_close(loss, (torch.log1p(torch.exp(torch.tensor(-1.0))) + math.log(2)) / 2)
    scale = lr_scale(("head.",), 0.1)
    assert (scale("head.mlp.0.weight"), scale("transformer.head.weight")) == (1.0, 0.1)


def test_shares_of_the_pairs_are_nested() -> None:
    table = pairs(list(range(0, 40, 2)), list(range(1, 40, 2)), [i // 2 for i in range(20)])
    quarter, half = first_groups(table, 0.25), first_groups(table, 0.5)
    assert (len(quarter), len(half), len(first_groups(table, 1.0))) == (4, 10, 20)
    assert set(quarter.group.tolist()) < set(half.group.tolist())


@pytest.mark.parametrize("mode", ["full", "frozen"])
def test_training_on_a_table_lowers_the_loss(
    tables: tuple[SampleTable, SampleTable], tmp_path: Path, mode: str
) -> None:
    table = replace(tables[0], total=tables[0].latents.float().mean((1, 2, 3)))  # a label that latents show plainly
    made = pipeline()
    config = dit_reward_config(dict(made.vae.config), text_length=28)
    assert config.latent_space == "vae16x8-scale0.9-shift0.1"
    torch.manual_seed(0)
    model = DiTRewardModel(made.transformer, config)
    train = train_full if mode == "full" else train_frozen
    found = pairs_of(table, margin=0.0)
    plan = FitPlan(steps=25, lr=3e-3, warmup=2)
    record = train(model, table, found, name="tiny", seed=0, checkpoint=tmp_path / "tiny.pt", plan=plan)
    assert 0.6 < record.losses[0] < 0.8
    assert sum(record.losses[-3:]) / 3 < 0.6
    assert accuracy(score_latents(model, table), found).overall.share > 0.7


def test_scores_are_centred_on_the_policys_own_samples(tables: tuple[SampleTable, SampleTable]) -> None:
    layer = torch.nn.Linear(3, 2)
    layer.weight.data.zero_()
    layer.bias.data.copy_(torch.tensor([5.0, 7.0]))
    scores = torch.where(tables[0].kind == 0, 4.0, 100.0)
    centre(layer, scores, tables[0])
    assert layer.bias.tolist() == [1.0, 7.0]


def test_the_packaged_rewards_prefer_true_renderings() -> None:
    made = StableDiffusion3Pipeline.from_pretrained(checkpoint("sd35"))
    scenes = choose_scenes(48, test=True, generator=torch.Generator().manual_seed(0))
    prompts = tuple(str(scene) for scene in scenes) * GROUP
    images = edited_images(scenes, torch.Generator().manual_seed(1))
    seeds = torch.arange(len(scenes)).repeat(GROUP)
    with torch.no_grad():
        latents = scaled_latents(made.vae, images)
        decoded = decode(made.vae, latents)
        text = encode_texts(made, list(prompts))
        condition = TextCondition(embeds=text.embeds, pooled=text.pooled)
        latent = DiTReward()(RewardInput(prompts=prompts, seeds=seeds, latents=latents, condition=condition))
        pixel = HPSv3Reward()(RewardInput(prompts=prompts, seeds=seeds, pixels=decoded))

    def better_than(scores: torch.Tensor, first: int, last: int) -> float:
        rounds = scores.reshape(GROUP, len(scenes))
        return (rounds[0] > rounds[first:last]).float().mean().item()

    # Rounds 2 to 4 have a flaw, 5 to 7 show a scene that differs in one word.
    assert better_than(latent, 2, 5) > 0.75
    assert better_than(latent, 5, 8) > 0.75
    assert better_than(pixel, 2, 5) > 0.6
    assert better_than(pixel, 5, 8) > 0.6


def test_a_stage_of_the_build_runs_once_unless_its_folder_is_gone(tmp_path: Path) -> None:
    made, ran = tmp_path / "made", []

    def stage() -> dict[str, object]:
        made.mkdir(exist_ok=True)
        ran.append(len(ran))
        return {"number": len(ran)}

    record = tmp_path / "records" / "stage.json"
    assert build._once(record, made, stage) == build._once(record, made, stage) == {"number": 1}
    made.rmdir()
    assert build._once(record, made, stage) == {"number": 2}
    assert json.loads(record.read_text()) == {"number": 2}


def test_a_work_folder_belongs_to_one_build(tmp_path: Path) -> None:
    build._check_begun(tmp_path / "begun", "build --seed 3")
    build._check_begun(tmp_path / "begun", "build --seed 3")
    with pytest.raises(UserError, match=r"was begun by build --seed 3, not build --seed 4; go on as begun, or use an"):
        build._check_begun(tmp_path / "begun", "build --seed 4")


def test_a_smaller_build_does_a_share_of_every_stage() -> None:
    full, small = BuildPlan(), BuildPlan().scaled(0.1)
    assert BuildPlan().scaled(1.0) == full
    for name in ("vae", "policy", "captions", "dit_reward", "dit_reward_frozen", "hpsv3"):
        one, two = vars(full)[name], vars(small)[name]
        assert two.steps == round(one.steps / 10)
        assert two.lr == one.lr
    assert (small.policy_images, small.growth_steps) == (round(full.policy_images / 10), 30)
    assert vars(small.pairs) == {key: round(value / 10) for key, value in vars(full.pairs).items()}
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(UserError, match=r"--scale must lie in \(0, 1\], got"):
            BuildPlan().scaled(share)
