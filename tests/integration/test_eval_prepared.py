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
from flowrl.pocket.preferences import SetPlan, build_table, ranked_pairs
from flowrl.types import RewardInput
from rewards.data.store import PreferenceStore
from rewards.dit_reward import DiTReward
from rewards.evaluation.cached_reward import CachedReward
from rewards.evaluation.score_cache import ScoreCache
from rewards.evaluation.score_prepared import open_prepared, score_prepared
from tests import tiny_store
from tests.cheap_rewards import BRIGHT, LATENT, Brightness, LatentNorm


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    policy = embedded("sd35")
    plan = SetPlan(policy_train=1, edited_train=1, policy_test=2, edited_test=2)
    pipeline = StableDiffusion3Pipeline.from_pretrained(policy)
    table = build_table(pipeline, folder / "drawn", test=True, seed=3, plan=plan)
    write_store(folder / "set", table, ranked_pairs(table, margin=0.02), latent_space=SD3.latent_space(policy))
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


def test_each_sample_is_scored_once_and_pixels_that_are_not_held_are_an_error_before_that(tmp_path: Path) -> None:
    tiny_store.write_set(tmp_path / "set", num_comparisons=3, latent_space="vae4x8", seed=0)
    store, table = open_prepared(str(tmp_path / "set"), [])
    norm = LatentNorm()
    made = {LATENT: norm, BRIGHT: Brightness()}
    rewards = [
        CachedReward(label=name, name=name, options={}, target=name, make=lambda name, _: made[name]) for name in made
    ]
    caches = [ScoreCache(None, {}) for _ in made]
    with pytest.raises(UserError, match=r"set: holds latents, not pixels"):
        score_prepared("tiny", store, table, rewards, caches, seed=0, images_per_chunk=4)
    assert norm.scored == 0
    score_prepared("tiny", store, table, rewards[:1], caches[:1], seed=0, images_per_chunk=4)
    assert norm.scored == 9


def test_scores_of_an_earlier_run_on_a_set_are_announced_once_for_all_its_sources(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = config(tmp_path, prepared)
    given = json.loads(file.read_text())
    (entry,) = given["benchmarks"]
    given["benchmarks"] = [entry, {**entry, "name": "edited", "pair_sources": ["edited"]}]
    file.write_text(json.dumps(given))
    assert cli.main(["reward", "eval", str(file)]) == 0
    assert "earlier run" not in capsys.readouterr().err
    assert cli.main(["reward", "eval", str(file)]) == 0
    pairs = PreferenceStore(prepared).pairs
    number = 2 * len(torch.cat([pairs.winner, pairs.loser]).unique())  # of two rewards
    line = f"reward eval: {number} of {number} scores found from an earlier run in {tmp_path / 'out' / 'scores'}\n"
    assert line in capsys.readouterr().err


def test_a_reward_that_says_nothing_beforehand_is_held_to_every_set_once_it_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, space in (("one", "vae4x8"), ("other", "vae2x8")):
        tiny_store.write_set(tmp_path / name, num_comparisons=3, latent_space=space, seed=0)
    file = tmp_path / "eval.yaml"
    benchmarks = [{"name": name, "prepared": str(tmp_path / name)} for name in ("one", "other")]
    for entry in benchmarks:
        entry["protocols"] = ["rankings_pooled"]  # type: ignore[assignment]
    rewards = [{"name": LATENT, "label": "norm", "options": {"latent_space": "vae4x8"}}]
    file.write_text(json.dumps({"rewards": rewards, "benchmarks": benchmarks, "out": str(tmp_path / "out")}))
    assert cli.main(["reward", "eval", str(file), "device=cpu"]) == 2
    said = f"{LATENT!r} reads latents of vae4x8, but {tmp_path / 'other'} holds latents of vae2x8; use a reward"
    assert said in capsys.readouterr().err
    (scores,) = (tmp_path / "out" / "scores").rglob("*.jsonl")
    assert len(scores.read_text().splitlines()) == 1  # whose they would be


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
