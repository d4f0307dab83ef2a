"""An evaluation on a prepared set: what is stored is what the rewards read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from flowrl import cli
from flowrl.base.embedded import embedded
from flowrl.base.errors import UserError
from flowrl.core.seeds import evaluation_seeds
from flowrl.models.sd3 import SD3
from flowrl.pocket.preference_store import write_store
from flowrl.pocket.preferences import SetPlan, build_table, pairs_of
from flowrl.types import RewardInput
from rewards.data.store import PreferenceStore
from rewards.dit_reward import DiTReward
from rewards.evaluation.labelled_reward import LabelledReward
from rewards.evaluation.score_cache import ScoreCache
from rewards.evaluation.score_prepared import open_prepared, score_prepared
from tests import tiny_store
from tests.cheap_rewards import Brightness, LatentNorm


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    policy = embedded("sd35")
    plan = SetPlan(policy_train=1, edited_train=1, policy_test=2, edited_test=2)
    pipeline = StableDiffusion3Pipeline.from_pretrained(policy)
    table = build_table(pipeline, folder / "drawn", test=True, seed=3, plan=plan)
    write_store(folder / "set", table, pairs_of(table, margin=0.02), latent_space=SD3.latent_space(policy))
    return folder / "set"


def config(folder: Path, prepared: Path, **benchmark: object) -> Path:
    entry = {"name": "pocket", "prepared": str(prepared), "protocols": ["rankings_pooled"], **benchmark}
    rewards = [{"name": "dit_reward", "label": "latent"}, {"name": "hpsv3", "label": "pixel"}]
    file = folder / "eval.yaml"
    file.write_text(json.dumps({"rewards": rewards, "benchmarks": [entry], "out": str(folder / "out")}))
    return file


def test_figures_are_those_of_the_rewards_own_scores(prepared: Path, tmp_path: Path) -> None:
    assert cli.main(["reward", "eval", str(config(tmp_path, prepared))]) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    (figures,) = [one["protocols"][0]["figures"] for one in result["benchmarks"]]
    store = PreferenceStore(prepared)
    rows = torch.arange(len(store.shape))
    prompts = tuple(store.prompts[row] for row in store.prompt)
    scores = DiTReward()(
        RewardInput(
            prompts=prompts,
            seeds=evaluation_seeds(prompts),
            latents=store.tensors("latents", rows),
            condition=store.conditions(store.prompt),
        )
    )
    expected = (scores[store.pairs.winner] > scores[store.pairs.loser]).double().mean().item()
    assert figures[0]["label"] == "latent"
    assert figures[0]["accuracy"] == pytest.approx(expected)
    assert figures[1]["accuracy"] > 0.6


def test_the_sources_of_pairs_can_be_chosen(prepared: Path) -> None:
    store, edited = open_prepared(str(prepared), ["edited"])
    assert {store.info.sources[source] for source in edited.source.tolist()} == {"edited"}
    assert 0 < len(edited) < len(store.pairs)
    with pytest.raises(UserError, match=r"has no pairs of 'edits'; its sources: rollout, policy, edited"):
        open_prepared(str(prepared), ["edits"])


def test_the_first_comparisons_of_each_source_of_pairs_are_taken(prepared: Path) -> None:
    _, pairs = open_prepared(str(prepared), [])
    first = pairs.first_comparisons(2)
    for source in torch.unique(pairs.source).tolist():
        own = pairs.comparison[pairs.source == source]
        assert first.comparison[first.source == source].unique().tolist() == own.unique()[:2].tolist()
    assert len(pairs.first_comparisons(0)) == len(pairs)


def test_latents_of_another_space_than_a_rewards_are_refused_before_any_score(tmp_path: Path) -> None:
    tiny_store.write_set(tmp_path / "set", num_comparisons=3, latent_space="vae16x8-scale2-shift0", seed=0)
    store, table = open_prepared(str(tmp_path / "set"), [])
    own, other = LatentNorm(latent_space="vae16x8-scale2-shift0"), LatentNorm()
    made = {"own": own, "other": other}
    rewards = [LabelledReward(label=name, name=name, options={}, make=lambda name, _: made[name]) for name in made]
    caches = [ScoreCache(None, {}) for _ in made]
    with pytest.raises(UserError, match=r"set: holds latents of vae16x8-scale2-shift0, but other reads latents of vae"):
        score_prepared("tiny", store, table, rewards, caches, seed=0, images_per_chunk=4)
    assert (own.scored, other.scored) == (0, 0)
    score_prepared("tiny", store, table, rewards[:1], caches[:1], seed=0, images_per_chunk=4)
    assert own.scored == 9
    bright = LabelledReward(label="bright", name="bright", options={}, make=lambda *_: Brightness())
    with pytest.raises(UserError, match=r"set: holds latents, not pixels"):
        score_prepared("tiny", store, table, [bright], caches[1:], seed=0, images_per_chunk=4)


def test_a_set_that_is_not_whole_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["reward", "eval", str(config(tmp_path, tmp_path))]) == 2
    assert "not a prepared preference set, or not a whole one" in capsys.readouterr().err


def test_a_set_of_another_text_length_or_latent_space_is_refused_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = SD3.latent_space(embedded("sd35"))
    for name, made_in, says in (
        ("short", space, "'dit_reward' was trained on texts of 28 tokens, but gets 16 of {}; prepare the set again"),
        ("other", "vae4x8", f"'dit_reward' reads latents of {space}, but {{}} holds latents of vae4x8"),
    ):
        tiny_store.write_set(tmp_path / name, num_comparisons=3, latent_space=made_in, seed=0)
        assert cli.main(["reward", "eval", str(config(tmp_path, tmp_path / name))]) == 2
        assert says.format(tmp_path / name) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
