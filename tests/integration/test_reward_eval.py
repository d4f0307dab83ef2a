"""`flowrl reward eval`, end to end: published formats, pixel and latent rewards, interruptions, broken data."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import AutoencoderKL
from PIL import Image

from flowrl.base.config_tree import ConfigError
from flowrl.base.embedded import embedded
from flowrl.base.errors import UserError
from flowrl.cli.reward_eval import REWARD_EVAL_VERBS
from flowrl.core.seeds import evaluation_seeds
from flowrl.models.sd3 import SD3
from flowrl.types import RewardInput
from rewards.data.source import DataSource
from rewards.dit_reward import DiTReward
from rewards.evaluation.config import BenchmarkEntry, EvaluationConfig, RewardEntry
from rewards.evaluation.result import EvaluationResult
from rewards.evaluation.run import run
from tests import preference_files
from tests.cheap_rewards import BRIGHT, Brightness
from tests.locked_folder import locked_by_another

Figures = dict[str, dict[str, float]]
TARGET = "tests.integration.test_reward_eval:CountingBrightness"


class Interrupted(BaseException):
    """Stands for whatever ends a process."""


class CountingBrightness(Brightness):
    """Brightness that knows how many images it has scored, and is interrupted after some."""

    def __init__(self, stop_after: int = 10**9, nan_below: float = 0.0, sign: float = 1.0) -> None:
        super().__init__(sign=sign)
        self.scored = 0
        self.stop_after = stop_after
        self.nan_below = nan_below

    def __call__(self, batch: RewardInput) -> torch.Tensor:
        if self.scored >= self.stop_after:
            raise Interrupted
        self.scored += len(batch.prompts)
        scores = super().__call__(batch)
        return torch.where(self.sign * scores < self.nan_below, torch.nan, scores)


def call(tmp_path: Path, config: Mapping[str, Any], *overrides: str) -> Path:
    """Run the command and return the folder that it wrote."""
    file = tmp_path / "eval.yaml"
    file.write_text(yaml.safe_dump({"out": str(tmp_path / "out"), "draws": 200, "device": "cpu", **config}))
    verb = REWARD_EVAL_VERBS["reward eval"]
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    assert verb.run(parser.parse_args([str(file), *overrides])) == 0
    return tmp_path / "out"


def figures(result: Mapping[str, Any]) -> Figures:
    """BENCHMARK PROTOCOL -> label -> accuracy."""
    return {
        f"{benchmark['name']} {protocol['protocol']}": {one["label"]: one["accuracy"] for one in protocol["figures"]}
        for benchmark in result["benchmarks"]
        for protocol in benchmark["protocols"]
    }


def evaluate(out: Path, file: Path, rewards: Mapping[str, CountingBrightness], **changes: Any) -> EvaluationResult:
    """Rewards that are already made, on one file of the plain format."""
    config = EvaluationConfig(
        rewards=[RewardEntry(name=name) for name in rewards],
        benchmarks=[
            BenchmarkEntry(
                name="mine", sources=[DataSource(format="jsonl", path=str(file))], protocols=["ties_dropped"]
            )
        ],
        out=str(out),
        draws=100,
        images_per_chunk=4,
    )
    for key, value in changes.items():
        assert hasattr(config, key)
        setattr(config, key, value)
    return run(config, make=lambda name, _: rewards[name], target=lambda _: TARGET, inputs=None)


def test_the_four_published_benchmarks_become_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hpdv3 = preference_files.write_hpdv3(tmp_path / "hpdv3")
    hpdv2 = preference_files.write_hpdv2_test(tmp_path / "hpdv2")
    image_reward = preference_files.write_image_reward(tmp_path / "image_reward")
    test = preference_files.write_pick_a_pic(tmp_path / "pick", num=24)
    validation = preference_files.write_pick_a_pic(tmp_path / "pick-validation", seed=1)
    out = call(
        tmp_path,
        {
            "rewards": [
                {"name": BRIGHT, "label": "bright", "probability_scale": 20.0},
                {"name": BRIGHT, "label": "dark", "options": {"sign": -1.0}},
            ],
            "benchmarks": [
                {
                    "name": "ImageReward",
                    "test_set": "image_reward",
                    "protocols": ["rankings_pooled", "rankings_per_prompt"],
                    "sources": [{"format": "image_reward", "path": str(image_reward)}],
                },
                {
                    "name": "PickScore",
                    "test_set": "pickscore",
                    "protocols": ["tie_aware", "tie_aware_quantiles", "ties_dropped"],
                    "sources": [{"format": "pick_a_pic", "path": str(test)}],
                    "validation": [{"format": "pick_a_pic", "path": str(validation)}],
                },
                {
                    "name": "HPDv2",
                    "test_set": "hpdv2",
                    "protocols": ["rankings_per_prompt"],
                    "sources": [{"format": "hpdv2", "path": str(hpdv2)}],
                },
                {"name": "HPDv3", "test_set": "hpdv3", "sources": [{"format": "hpdv3", "path": str(hpdv3)}]},
            ],
        },
    )
    result = json.loads((out / "result.json").read_text())
    found = figures(result)
    # The brighter image is the preferred one. Of a ranking of four whose last two are tied, one pair of six is a tie,
    # which is never discordant per prompt. Images of a tied pair of Pick-a-Pic are as far apart as all others, so no
    # threshold tells them: bright is right but on ties (a half each), dark is best off calling everything a tie.
    assert found["ImageReward rankings_pooled"] == {"bright": 1, "dark": 0}
    assert found["ImageReward rankings_per_prompt"] == {"bright": 1, "dark": pytest.approx(1 / 6)}
    assert found["HPDv2 rankings_per_prompt"] == {"bright": 1, "dark": 0}
    assert found["HPDv3 pairs"] == {"bright": 1, "dark": 0}
    assert found["PickScore ties_dropped"] == {"bright": 1, "dark": 0}
    ties = 6 / 21  # of 24 rows every fourth is a tie, three more have no label
    for protocol in ("tie_aware", "tie_aware_quantiles"):
        earned = found[f"PickScore {protocol}"]
        assert earned["bright"] == pytest.approx(1 - ties / 2, abs=0.03)
        assert earned["dark"] == pytest.approx((1 + ties) / 2, abs=0.03)
    assert result["benchmarks"][1]["coverage"]["skipped_rows"] == 3
    page = (out / "result.md").read_text()
    assert (
        "| model | by | ImageReward (rankings_pooled) | PickScore (tie_aware) | HPDv2 (rankings_per_prompt) | "
        "HPDv3 (pairs) |"
    ) in page
    assert "| *DiT-Reward* | published | *67.0* | *66.7* | *85.6* | *77.6* |" in page
    printed = capsys.readouterr().out
    assert "| bright | measured here | 100.0 [100.0, 100.0] |" in printed
    assert printed.splitlines()[-1] == str(out / "result.md")


def test_a_latent_reward_reads_what_the_policys_own_encoders_make(tmp_path: Path) -> None:
    prompts = ["a large red circle on sand", "a small blue square on sky"]
    rows = []
    for number, prompt in enumerate(prompts):
        for side in ("a", "b"):
            image = preference_files.picture(brightness=90 + 60 * number, seed=number + 7 * ord(side))
            image.save(tmp_path / f"{number}{side}.png")
        rows.append({"prompt": prompt, "preferred": f"{number}a.png", "rejected": f"{number}b.png"})
    file = preference_files.write_json(tmp_path / "pairs.jsonl", rows)
    config = {
        "rewards": [{"name": "dit_reward"}, {"name": "hpsv3"}],
        "benchmarks": [{"name": "mine", "sources": [{"format": "jsonl", "path": str(file)}]}],
        "encoders": {"path": "pocket", "max_sequence_length": 14},
    }
    out = call(tmp_path, config)
    assert "What rewards were given" not in (out / "result.md").read_text()
    (scores,) = (out / "scores").rglob("dit-reward-*.jsonl")
    kept = list(json.loads(scores.read_text().splitlines()[1])["scores"].values())

    vae = AutoencoderKL.from_pretrained(embedded("sd35") / "vae")
    encoder = SD3.load_encoder(embedded("sd35"), max_sequence_length=14, dtype=torch.float32, device="cpu")
    reward, expected = DiTReward(), []
    for number, prompt in enumerate(prompts):
        for side in ("a", "b"):
            with Image.open(tmp_path / f"{number}{side}.png") as image:
                pixels = torch.tensor(list(image.convert("RGB").tobytes())).reshape(1, 64, 64, 3).permute(0, 3, 1, 2)
            with torch.no_grad():
                raw = vae.encode(pixels / 127.5 - 1).latent_dist.mean
                latents = (raw - vae.config.shift_factor) * vae.config.scaling_factor
                seed = evaluation_seeds([prompt])
                batch = RewardInput(prompts=(prompt,), seeds=seed, latents=latents, condition=encoder.encode(prompt))
                expected.append(reward(batch).item())
    assert kept == pytest.approx(expected, abs=1e-4)
    right = [expected[0] > expected[1], expected[2] > expected[3]]
    found = figures(json.loads((out / "result.json").read_text()))["mine pairs"]
    assert found["dit_reward"] == sum(right) / 2

    with pytest.raises(ConfigError, match=r"reads latents of vae16.*encoders\.path is not set"):
        call(tmp_path, config, "encoders.path=''")
    said = r"'dit_reward' was trained on texts of 28 tokens, but gets 34 with encoders.max_sequence_length 20; set enc"
    with pytest.raises(ConfigError, match=said):
        call(tmp_path, config, "encoders.max_sequence_length=20")


def test_images_are_as_in_the_rewards_training_unless_that_is_overruled_which_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, size in (("a", (128, 128)), ("b", (160, 96))):
        preference_files.picture(height=size[0], width=size[1], seed=ord(name)).save(tmp_path / f"{name}.png")
    rows = [{"prompt": "a large red circle on sand", "preferred": "a.png", "rejected": "b.png"}]
    file = preference_files.write_json(tmp_path / "pairs.jsonl", rows)
    config = {
        "rewards": [{"name": "dit_reward", "label": "latent"}, {"name": "dit_reward_pixels", "label": "pixel"}],
        "benchmarks": [{"name": "mine", "sources": [{"format": "jsonl", "path": str(file)}]}],
        "encoders": {"path": "pocket", "max_sequence_length": 14},
    }
    out = call(tmp_path, config)
    assert "latent was trained on" not in capsys.readouterr().err

    def kept(label: str) -> dict[str, float]:
        (scores,) = (out / "scores").rglob(f"{label}-*.jsonl")
        found: dict[str, float] = json.loads(scores.read_text().splitlines()[1])["scores"]
        return found

    assert kept("latent") == pytest.approx(kept("pixel"), abs=1e-4)  # which reads as in its training too
    again = tmp_path / "again"
    call(tmp_path, config, f"out={again}", "encoders.image_size=96", "encoders.bucket_step=32")
    line = (
        "latent was trained on images of about 64 x 64 in buckets of 64 up to 1:1; it gets images of about 96 x 96 in "
        "buckets of 32 up to 1:1"
    )
    assert f"reward eval: {line}\n" in capsys.readouterr().err
    assert (again / "result.md").read_text().endswith(f"\n## What rewards were given\n\n- {line}\n")


def test_an_interrupted_evaluation_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    file = preference_files.write_jsonl(tmp_path / "data", num=12)
    whole = evaluate(tmp_path / "whole", file, {"one": CountingBrightness()})

    with pytest.raises(Interrupted):
        evaluate(tmp_path / "out", file, {"one": CountingBrightness(stop_after=9)})
    (scores,) = (tmp_path / "out" / "scores").rglob("*.jsonl")
    lines = scores.read_bytes().splitlines(keepends=True)
    assert len(lines) == 3  # whose scores, and two chunks of four images
    scores.write_bytes(b"".join(lines)[:-9])  # as if the second had been cut off on its way to the disk

    again = CountingBrightness()
    result = evaluate(tmp_path / "out", file, {"one": again})
    assert again.scored == 24 - 4
    assert result == whole
    (unbroken,) = (tmp_path / "whole" / "scores").rglob("*.jsonl")
    assert scores.read_bytes() == unbroken.read_bytes()
    assert (tmp_path / "out" / "result.json").read_bytes() == (tmp_path / "whole" / "result.json").read_bytes()


@pytest.mark.parametrize("together", [True, False])
def test_a_reward_that_is_added_is_the_only_one_that_is_scored(tmp_path: Path, together: bool) -> None:
    file = preference_files.write_jsonl(tmp_path / "data")
    alone = evaluate(tmp_path / "out", file, {"one": CountingBrightness()})
    old, new = CountingBrightness(), CountingBrightness(sign=-1.0, nan_below=-1.0)
    both = evaluate(tmp_path / "out", file, {"one": old, "new": new}, together=together)
    assert (old.scored, new.scored) == (0, 16)
    first, second = both.benchmarks[0].protocols[0].figures
    assert first == alone.benchmarks[0].protocols[0].figures[0]
    assert (first.accuracy, second.accuracy) == (1, 0)
    difference = both.benchmarks[0].protocols[0].differences[0]
    assert (difference.first, difference.second) == ("one", "new")
    assert (difference.paired.difference, difference.paired.probability) == (1, 1)


def test_an_image_that_was_replaced_is_scored_again(tmp_path: Path) -> None:
    file = preference_files.write_jsonl(tmp_path / "data", num=7)
    before = evaluate(tmp_path / "out", file, {"one": CountingBrightness()})
    assert before.benchmarks[0].protocols[0].figures[0].accuracy == 1
    row = preference_files.read_rows(file)[0]
    better, worse = (file.parent / row[key] for key in ("preferred", "rejected"))
    darker = worse.read_bytes()
    worse.write_bytes(better.read_bytes())
    better.write_bytes(darker)
    again = CountingBrightness()
    after = evaluate(tmp_path / "out", file, {"one": again})
    assert again.scored == 2
    assert after.benchmarks[0].protocols[0].figures[0].accuracy == pytest.approx(5 / 6)  # of seven pairs one is a tie


@pytest.mark.parametrize("together", [True, False])
def test_scores_of_an_earlier_run_are_announced_and_none_is_counted_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], together: bool
) -> None:
    file = preference_files.write_jsonl(tmp_path / "data")
    source = DataSource(format="jsonl", path=str(file))
    benchmarks = [
        BenchmarkEntry(name=name, sources=[source], protocols=["ties_dropped"], max_comparisons=limit)
        for name, limit in (("first", 3), ("all", 0))
    ]
    changes = {"benchmarks": benchmarks, "together": together}
    evaluate(tmp_path / "out", file, {"one": CountingBrightness()}, **changes)
    assert "earlier run" not in capsys.readouterr().err
    new = CountingBrightness(sign=-1.0)
    evaluate(tmp_path / "out", file, {"one": CountingBrightness(), "new": new}, **changes)
    line = f"reward eval: 16 of 32 scores found from an earlier run in {tmp_path / 'out' / 'scores'}\n"
    said = capsys.readouterr().err
    assert said.count(line) == said.count("earlier run") == 1


def test_pairs_that_stand_there_again_are_counted_and_stay_in_the_figures(tmp_path: Path) -> None:
    file = preference_files.write_jsonl(tmp_path / "data", num=2)
    row, other = preference_files.read_rows(file)
    turned = row | {"preferred": row["rejected"], "rejected": row["preferred"]}
    preference_files.write_json(file, [row, turned, row])
    found = json.loads(evaluate(tmp_path / "out", file, {"one": CountingBrightness()}).to_json())["benchmarks"][0]
    assert found["protocols"][0]["figures"][0]["accuracy"] == pytest.approx(2 / 3)
    assert (found["coverage"]["num_repeated"], found["coverage"]["num_contradicted"]) == (2, 3)
    page = (tmp_path / "out" / "result.md").read_text()
    assert "2 pairs stand there more than once with the same label, 3 stand there with another label too" in page
    preference_files.write_json(file, [row, other])
    evaluate(tmp_path / "out", file, {"one": CountingBrightness()})
    assert "more than once" not in (tmp_path / "out" / "result.md").read_text()


def test_an_image_under_several_comparisons_is_scored_once(tmp_path: Path) -> None:
    file = preference_files.write_jsonl(tmp_path / "data", num=3)
    rows = preference_files.read_rows(file)
    preference_files.add_rows(file, rows[0], {**rows[0], "rejected": rows[1]["rejected"]})
    reward = CountingBrightness()
    result = evaluate(tmp_path / "out", file, {"one": reward})
    assert reward.scored == 6  # rows 0 and 1 share a prompt
    assert result.benchmarks[0].coverage.num_pairs == 5


def test_broken_images_and_rows_are_counted_and_named(tmp_path: Path) -> None:
    file = preference_files.write_jsonl(tmp_path / "data")
    broken = file.parent / preference_files.read_rows(file)[1]["preferred"]
    broken.write_bytes(broken.read_bytes()[:80])
    preference_files.add_rows(file, {"prompt": "", "preferred": "a.png", "rejected": "b.png"}, {"prompt": "no images"})
    result = evaluate(tmp_path / "out", file, {"one": CountingBrightness()})
    coverage = result.benchmarks[0].coverage
    assert (coverage.num_pairs, coverage.num_comparable) == (8, 7)
    assert (coverage.num_bad_images, coverage.num_bad_rows) == (1, 2)
    assert coverage.bad_images[0].startswith(str(broken))
    assert coverage.bad_rows == ("pairs.jsonl:9: the prompt is empty", "pairs.jsonl:10: has no 'preferred'")
    assert coverage.unscored == {"one": 0}
    page = (tmp_path / "out" / "result.md").read_text()
    assert "1 images cannot be used and are not counted" in page
    with pytest.raises(
        UserError, match=r"more than 1 rows cannot be used, the last is pairs\.jsonl:10: has no 'prefer"
    ):
        evaluate(tmp_path / "out", file, {"one": CountingBrightness()}, max_bad=1)


def test_the_first_comparisons_of_each_source_are_those_that_can_be_used(tmp_path: Path) -> None:
    broken = [{"prompt": "", "preferred": "a.png", "rejected": "b.png"}, {"prompt": "no images"}]
    sources = []
    for name in ("one", "two"):
        file = preference_files.write_jsonl(tmp_path / name)
        rows = preference_files.read_rows(file)
        preference_files.write_json(file, [*broken, *rows])
        sources.append(DataSource(format="jsonl", path=str(file)))
    benchmark = BenchmarkEntry(name="mine", sources=sources, protocols=["ties_dropped"], max_comparisons=3)
    result = evaluate(tmp_path / "out", file, {"one": CountingBrightness()}, benchmarks=[benchmark])
    assert result.benchmarks[0].coverage.num_comparisons == 6
    assert result.benchmarks[0].coverage.num_bad_rows == 4


def test_a_pair_that_one_reward_cannot_score_counts_for_none(tmp_path: Path) -> None:
    file = preference_files.write_jsonl(tmp_path / "data", num=7)
    dark = file.parent / preference_files.read_rows(file)[0]["rejected"]
    preference_files.picture(brightness=60).save(dark)
    fussy = CountingBrightness(nan_below=0.4)
    result = evaluate(tmp_path / "out", file, {"one": CountingBrightness(), "fussy": fussy})
    assert result.benchmarks[0].coverage.unscored == {"one": 0, "fussy": 1}
    assert result.benchmarks[0].coverage.num_comparable == 6
    assert "fussy gave no finite score to 1 images" in (tmp_path / "out" / "result.md").read_text()
    picky = CountingBrightness(nan_below=0.75)  # all rejected images are darker than that
    with pytest.raises(
        UserError,
        match=r"mine: none of its 7 pairs has two images that every reward has scored \(0 images cannot be used; of "
        r"the others one lacks 0, picky lacks 7\); leave out",
    ):
        evaluate(tmp_path / "picky", file, {"one": CountingBrightness(), "picky": picky})
    blind = {"blind": CountingBrightness(nan_below=2.0)}
    with pytest.raises(UserError, match=r"mine: blind has no finite score of any image"):
        evaluate(tmp_path / "out", file, blind)


def test_ties_are_counted_and_ties_alone_are_an_error_where_a_winner_is_needed(tmp_path: Path) -> None:
    file = preference_files.write_jsonl(tmp_path / "data", num=6)
    rows = preference_files.read_rows(file)
    source = DataSource(format="jsonl", path=str(file))
    benchmark = BenchmarkEntry(name="mine", sources=[source], validation=[source])
    rewards = {"one": CountingBrightness()}
    preference_files.write_json(file, [row | {"tie": number < 2} for number, row in enumerate(rows)])
    benchmark.protocols = ["pairs", "rankings_per_prompt", "tie_aware_quantiles"]
    (found,) = evaluate(tmp_path / "some", file, rewards, benchmarks=[benchmark]).benchmarks
    assert (found.coverage.num_pairs, found.coverage.num_ties) == (6, 2)
    assert [(one.num_pairs, one.num_ties) for one in found.protocols] == [(4, 2), (6, 2), (6, 2)]
    page = (tmp_path / "some" / "result.md").read_text()
    assert "6 comparisons, 6 pairs, 2 of them ties; 6 pairs have scores" in page
    for said in (
        "left out",
        "counted as right, whatever their scores",
        "counted: right if the reward calls them a tie",
    ):
        assert f"Pairs that people tied, 2: {said}" in page
    preference_files.write_json(file, [row | {"tie": True} for row in rows])
    for protocol in ("pairs", "rankings_pooled", "rankings_per_prompt", "ties_dropped"):
        benchmark.protocols = [protocol]
        with pytest.raises(
            UserError,
            match=rf"mine: protocol {protocol} needs pairs with a winner, but all 6 pairs that every reward has scored "
            "are ties; take other sources, or a protocol that counts ties: tie_aware or tie_aware_quantiles",
        ):
            evaluate(tmp_path / "all", file, rewards, benchmarks=[benchmark])
    benchmark.protocols = ["tie_aware_quantiles"]
    (found,) = evaluate(tmp_path / "all", file, rewards, benchmarks=[benchmark]).benchmarks
    assert found.protocols[0].figures[0].accuracy == 1  # the threshold is the widest gap


def test_a_ranking_under_a_protocol_for_pairs_is_named_before_anything_is_scored_or_where_it_stands(
    tmp_path: Path,
) -> None:
    pairs = preference_files.write_jsonl(tmp_path / "data", num=7)
    rankings = preference_files.write_hpdv2_test(tmp_path / "hpdv2")
    early = [
        BenchmarkEntry(name="mine", sources=[DataSource(format="jsonl", path=str(pairs))], protocols=["ties_dropped"]),
        BenchmarkEntry(name="HPDv2", sources=[DataSource(format="hpdv2", path=str(rankings))]),
    ]
    reward = CountingBrightness()
    with pytest.raises(
        UserError, match=r"benchmarks, 'HPDv2': protocol pairs counts pairs, but .* ranks more than two"
    ):
        evaluate(tmp_path / "early", pairs, {"one": reward}, benchmarks=early)
    assert reward.scored == 0
    first, *rest = preference_files.read_rows(pairs)
    images = [first["preferred"], first["rejected"], rest[0]["preferred"]]
    ranking = {"prompt": "three", "images": images, "ranks": [0, 1, 2]}
    preference_files.write_json(pairs, [first, *rest, ranking])
    with pytest.raises(UserError, match=r"'mine': protocol ties_dropped .* but pairs\.jsonl:8 ranks more than two"):
        evaluate(tmp_path / "late", pairs, {"one": reward})
    assert reward.scored == 12  # of seven pairs those in whole chunks of four images


def test_a_file_that_is_missing_is_named_before_anything_is_scored(tmp_path: Path) -> None:
    file = preference_files.write_jsonl(tmp_path / "data")
    sources = [DataSource(format="jsonl", path=str(path)) for path in (file, tmp_path / "gone.jsonl")]
    benchmarks = [
        BenchmarkEntry(name=f"b{number}", sources=[source], protocols=["rankings_pooled"])
        for number, source in enumerate(sources)
    ]
    reward = CountingBrightness()
    with pytest.raises(UserError, match=r"gone\.jsonl"):
        evaluate(tmp_path / "out", file, {"one": reward}, benchmarks=benchmarks)
    assert reward.scored == 0


def test_one_evaluation_writes_to_a_folder_at_a_time(tmp_path: Path) -> None:
    file = preference_files.write_jsonl(tmp_path / "data")
    rewards = {"one": CountingBrightness()}
    with (
        locked_by_another(tmp_path / "out"),
        pytest.raises(
            ConfigError, match=r"out=.* but process 1 is writing to it; wait for it, stop it, or use another"
        ),
    ):
        evaluate(tmp_path / "out", file, rewards)
    assert [child.name for child in (tmp_path / "out").iterdir()] == [".lock"]
    evaluate(tmp_path / "out", file, rewards)


def test_an_evaluation_that_fails_leaves_the_earlier_one_as_it_was(tmp_path: Path) -> None:
    file = preference_files.write_jsonl(tmp_path / "data")
    evaluate(tmp_path / "out", file, {"one": CountingBrightness()})
    names = ("config.yaml", "env.json", "result.json", "result.md")
    before = {name: (tmp_path / "out" / name).read_bytes() for name in names}
    with pytest.raises(Interrupted):
        evaluate(tmp_path / "out", file, {"two": CountingBrightness(stop_after=0)})
    assert {name: (tmp_path / "out" / name).read_bytes() for name in names} == before


@pytest.mark.parametrize(("rows", "problem"), [([], "mine: there is no comparison to evaluate on$"), ([{}], "has no")])
def test_nothing_to_evaluate_on_is_an_error(tmp_path: Path, rows: Iterable[object], problem: str) -> None:
    file = preference_files.write_json(tmp_path / "pairs.jsonl", list(rows))
    with pytest.raises(UserError, match=problem):
        evaluate(tmp_path / "out", file, {"one": CountingBrightness()})
