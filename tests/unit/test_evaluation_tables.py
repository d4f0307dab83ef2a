"""Around the mathematics of an evaluation: configuration, kept scores, published figures, tables."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from flowrl.base.config_tree import ConfigError
from flowrl.base.errors import UserError
from rewards.data.comparison import ImageRef
from rewards.data.source import DataSource
from rewards.evaluation import identity
from rewards.evaluation.accuracy import PROTOCOLS, TieRule
from rewards.evaluation.bootstrap import Interval, PairedDifference
from rewards.evaluation.cached_reward import CachedReward
from rewards.evaluation.config import load
from rewards.evaluation.identity import code_digest, image_stamp, reward_identity, source_identity
from rewards.evaluation.published import PUBLISHED, TEST_SETS
from rewards.evaluation.result import (
    BenchmarkResult,
    CategoryFigures,
    Coverage,
    Difference,
    EvaluationResult,
    Figure,
    ProtocolResult,
    RewardDescription,
)
from rewards.evaluation.score_cache import ScoreCache
from rewards.evaluation.table import main_table, markdown, table

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "reward" / "eval"
TARGET = "rewards.hpsv2:HPSv2Reward"


def figure(label: str, accuracy: float, rule: TieRule | None = None) -> Figure:
    return Figure(
        label=label,
        accuracy=accuracy,
        interval=Interval(low=accuracy - 0.02, high=accuracy + 0.01),
        equal=3,
        tie_rule=rule,
    )


def a_result() -> EvaluationResult:
    rule = TieRule(threshold=0.2, measure="probability", scale=20.0)
    tie_aware = ProtocolResult(
        protocol="tie_aware",
        definition=PROTOCOLS["tie_aware"].definition,
        source=PROTOCOLS["tie_aware"].source,
        num_pairs=500,
        num_prompts=480,
        num_ties=60,
        ties=PROTOCOLS["tie_aware"].ties,
        figures=(figure("A", 0.702, rule), figure("B", 0.5, replace(rule, threshold=1.0))),
        by_category=(
            CategoryFigures(category="", num_pairs=100, figures=(figure("A", 0.6), figure("B", math.nan))),
            CategoryFigures(category="anime|paint", num_pairs=400, figures=(figure("A", 0.75), figure("B", 0.4))),
        ),
        differences=(
            Difference(
                first="A",
                second="B",
                paired=PairedDifference(difference=0.202, interval=Interval(low=-0.004, high=0.3), probability=0.98765),
            ),
        ),
    )
    coverage = Coverage(
        num_comparisons=510,
        num_pairs=510,
        num_ties=61,
        num_repeated=4,
        num_contradicted=3,
        num_comparable=500,
        unscored={"A": 0, "B": 7},
        num_bad_rows=0,
        bad_rows=(),
        num_bad_images=22,
        bad_images=("x.png: no such file",),
        skipped_rows=5,
    )
    own = ProtocolResult(
        protocol="pairs",
        definition="d",
        source="s",
        num_pairs=0,
        num_prompts=0,
        num_ties=0,
        ties="left out",
        figures=(figure("A", math.nan), figure("B", math.nan)),
        by_category=(),
        differences=(),
    )
    return EvaluationResult(
        rewards=(
            RewardDescription(label="A", name="a", options={"path": "x"}),
            RewardDescription(label="B", name="b", options={}),
        ),
        benchmarks=(
            BenchmarkResult(name="Pick", test_set="pickscore", coverage=coverage, protocols=(tie_aware,)),
            BenchmarkResult(name="my own", test_set="", coverage=coverage, protocols=(own,)),
        ),
        draws=2000,
        seed=0,
    )


def test_published_figures_stand_beside_ours_and_are_marked() -> None:
    lines = main_table(a_result()).splitlines()
    assert lines[0] == "| model | by | PickScore (tie_aware) | my own (pairs) |"
    assert lines[2] == "| A | measured here | 70.2 [68.2, 71.2] | - |"
    assert lines[3] == "| B | measured here | 50.0 [48.0, 51.0] | - |"
    assert "| *PickScore* | published | *70.5* | - |" in lines
    assert "| *HPSv3* | published | *72.8* | - |" in lines
    assert not any("VisionReward" in line for line in lines)  # it has no figure for any benchmark shown
    assert all("published" in line for line in lines[4:])


def test_the_page_says_how_each_figure_was_made() -> None:
    page = markdown(a_result())
    assert "65.1 in DiT-Reward's Table 1: measured again, or on another split" in page
    assert "| A | 70.2 [68.2, 71.2] | 3 | \\|p0 - p1\\| <= 0.2, scale 20 |" in page
    assert "| (none) | 100 | 60.0 [58.0, 61.0] | - |" in page
    assert "| anime\\|paint | 400 | 75.0 [73.0, 76.0] | 40.0 [38.0, 41.0] |" in page
    assert "| A - B | +20.2 [-0.4, +30.0] | 0.988 |" in page
    assert "22 images cannot be used and are not counted: x.png: no such file and 21 more." in page
    assert "B gave no finite score to 7 images: their pairs are not counted." in page
    assert "5 rows say nothing about a preference and were skipped." in page
    assert "500 pairs of 480 prompts are counted. Pairs that people tied, 60: counted: right if" in page
    assert "510 comparisons, 510 pairs, 61 of them ties; 500 pairs have scores of all rewards" in page
    assert "4 pairs stand there more than once with the same label, 3 stand there with another label too;" in page
    assert page.count("Pairs that people tied") == 1  # of the other there is none


def test_json_keeps_every_figure_and_has_null_for_what_is_no_number() -> None:
    found = json.loads(a_result().to_json())
    first = found["benchmarks"][0]["protocols"][0]["figures"][0]
    assert first["accuracy"] == 0.702
    assert first["tie_rule"] == {"threshold": 0.2, "measure": "probability", "scale": 20.0}
    assert found["benchmarks"][1]["protocols"][0]["figures"][0]["accuracy"] is None
    assert found["rewards"][0] == {"label": "A", "name": "a", "options": {"path": "x"}}


def test_a_table_is_markdown() -> None:
    assert table(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"


def test_the_published_table_is_the_papers() -> None:
    known = {(one.model, one.test_set): one.percent for one in PUBLISHED}
    assert len(known) == len(PUBLISHED)
    assert [known["DiT-Reward", key] for key in TEST_SETS] == [67.0, 66.7, 85.6, 77.6]
    assert [known["HPSv3", key] for key in TEST_SETS] == [66.8, 72.8, 85.4, 76.9]
    assert [known["DiT-Reward, frozen SD3.5-Large", key] for key in TEST_SETS] == [57.5, 60.9, 78.0, 72.3]
    assert [known["CLIP ViT-H/14", key] for key in TEST_SETS] == [57.1, 60.8, 65.1, 48.6]
    assert all(one.source and one.test_set in TEST_SETS for one in PUBLISHED)
    assert {one.protocol for one in TEST_SETS.values()} <= PROTOCOLS.keys()


def test_the_shipped_configuration_is_the_papers_table() -> None:
    config = load(CONFIGS / "benchmarks.yaml", ["device=cuda"])
    assert [one.test_set for one in config.benchmarks] == list(TEST_SETS)
    assert [one.protocols[0] for one in config.benchmarks] == [one.protocol for one in TEST_SETS.values()]
    assert config.benchmarks[1].sources[0].format == "pick_a_pic"
    assert config.device == "cuda"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocols": ["pair"]}, r"benchmarks\[0\]\.protocols\[0\]: unknown protocol 'pair'; did you mean 'pairs'"),
        ({"protocols": []}, r"benchmarks\[0\]\.protocols must name at least one protocol"),
        ({"protocols": ["pairs", "pairs"]}, r"benchmarks\[0\]\.protocols: the name 'pairs' must be there once"),
        ({"protocols": ["tie_aware"]}, r"benchmarks\[0\]\.validation must name a source: tie_aware find"),
        ({"test_set": "hpd"}, r"benchmarks\[0\]\.test_set: unknown test set 'hpd'; did you mean 'hpdv"),
        ({"sources": []}, r"benchmarks\[0\] must name either sources or a prepared set, got neither"),
        ({"prepared": "here"}, r"benchmarks\[0\] must name either sources or a prepared set, got both"),
        ({"pair_sources": ["one"]}, r"benchmarks\[0\]\.pair_sources is for a prepared set, and must be left out"),
        (
            {"sources": [{"format": "jsonl", "path": "x", "share": 0.5}]},
            r"sources\[0\]\.share is for training, and must",
        ),
        (
            {"sources": [{"format": "jsonl", "path": "x", "keep_ties": False}]},
            r"sources\[0\]\.keep_ties is for training, and must",
        ),
        ({"sources": [{"format": "jsonl", "path": ""}]}, r"benchmarks\[0\]\.sources\[0\]\.path must name a file"),
        ({"sources": [{"path": "x"}]}, r"benchmarks\[0\]\.sources\[0\]\.format must be set"),
        (
            {"sources": [], "prepared": "here", "protocols": ["tie_aware"]},
            r"benchmarks\[0\]\.protocols: tie_aware need validation pairs, which a prepared set does not have",
        ),
        (
            {"sources": [], "prepared": "here", "validation": [{"format": "jsonl", "path": "x"}]},
            r"benchmarks\[0\]\.validation is for sources, and must be left out beside a prepared set",
        ),
        ({"max_comparisons": -1}, r"benchmarks\[0\]\.max_comparisons must be at least 0"),
    ],
)
def test_a_wrong_benchmark_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    benchmark = {"name": "b", "sources": [{"format": "jsonl", "path": "x"}]} | change
    file = tmp_path / "eval.yaml"
    file.write_text(yaml.safe_dump({"rewards": [{"name": "hpsv3"}], "benchmarks": [benchmark]}))
    with pytest.raises(ConfigError, match=message):
        load(file, [])


def test_wrong_rewards_and_numbers_are_named(tmp_path: Path) -> None:
    good = {"rewards": [{"name": "a"}], "benchmarks": [{"name": "b", "sources": [{"format": "jsonl", "path": "x"}]}]}
    for change, message in (
        ({"rewards": []}, "rewards must name at least one reward"),
        ({"rewards": [{"name": "a"}, {"name": "b", "label": "a"}]}, "rewards: the label 'a' must be there once"),
        ({"rewards": [{"name": "a", "probability_scale": 0}]}, r"rewards\[0\]\.probability_scale must be positive"),
        ({"draws": 0}, "draws must be at least 1, got 0"),
        ({"encoders": {"image_size": 8}}, r"encoders\.image_size, unless 0, must be at least 16, .*got 8"),
        ({"encoders": {"bucket_step": 40}}, r"encoders\.bucket_step must be a multiple of 16"),
        ({"reward": []}, "unknown key 'reward'; did you mean 'rewards'"),
    ):
        file = tmp_path / "eval.yaml"
        file.write_text(yaml.safe_dump(good | change))
        with pytest.raises(ConfigError, match=message):
            load(file, [])


def test_kept_scores_come_back_and_a_torn_line_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "scores" / "a.jsonl"
    with ScoreCache(file, {"name": "a"}) as cache:
        cache.add({"one": 0.1, "two": math.nan})
    with file.open("a") as torn:
        torn.write('{"scores": {"three": 3.0')
    with ScoreCache(file, {"name": "a"}) as cache:
        assert cache["one"] == 0.1
        assert math.isnan(cache["two"])
        assert "three" not in cache
        cache.add({"three": 4.0})
    lines = file.read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"scores_of": {"name": "a"}},
        {"scores": {"one": 0.1, "two": None}},
        {"scores": {"three": 4.0}},
    ]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"scores_of": {}}\n{"scores": {"one": "high"}}\n')
    with pytest.raises(UserError, match=r"a\.jsonl: line 2 is damaged; delete the file"):
        ScoreCache(file, {})


def test_scores_are_found_again_only_for_the_same_reward_data_and_files(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_bytes(b"1")

    def place(seed: int = 0, **options: object) -> Path:
        reward = CachedReward(
            label="My reward",
            name="mine",
            options={"path": str(model), **options},
            target=TARGET,
            make=lambda name, _: None,  # type: ignore[arg-type,return-value]
        )
        with reward.cache(tmp_path / "scores", "my/data", {"seed": seed}) as cache:
            assert cache.path is not None
            return cache.path

    first = place()
    assert first.name.startswith("My-reward-")
    assert first.parent == tmp_path / "scores" / "my-data"
    assert place() == first
    assert place(seed=1) != first
    assert place(batch_size=2) != first
    (model / "weights").write_bytes(b"22")  # trained anew in the same folder
    assert place() != first


def test_a_reward_on_a_server_is_scored_anew_by_each_evaluation(tmp_path: Path) -> None:
    def made() -> CachedReward:
        url = "http://127.0.0.1:8700"
        return CachedReward(
            label="far",
            name="http",
            options={"url": url},
            target=TARGET,
            make=lambda name, _: None,  # type: ignore[arg-type,return-value]
        )

    reward = made()
    with reward.cache(tmp_path, "data", {"seed": 0}) as cache:
        cache.add({"one": 1.0})
    with reward.cache(tmp_path, "data", {"seed": 0}) as again, reward.cache(tmp_path, "data", {"seed": 1}) as other:
        assert again["one"] == 1.0  # within one evaluation
        assert "one" not in other
    with made().cache(tmp_path, "data", {"seed": 0}) as later:
        assert "one" not in later
    assert list(tmp_path.iterdir()) == []


def test_a_pocket_that_was_built_anew_is_another_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "EMBEDDED", tmp_path)
    (tmp_path / "weights").write_bytes(b"1")
    given: list[dict[str, str]] = [{}, {"path": "pocket"}, {"path": "/elsewhere", "base": "pocket"}]
    before = [reward_identity("dit_reward", options, TARGET) for options in given]
    apart = reward_identity("dit_reward", {"path": "/elsewhere"}, TARGET)
    (tmp_path / "weights").write_bytes(b"22")
    for options, one in zip(given, before, strict=True):
        assert reward_identity("dit_reward", options, TARGET) != one
    assert reward_identity("dit_reward", {"path": "/elsewhere"}, TARGET) == apart


def test_a_reward_is_another_once_the_model_under_it_has_changed(tmp_path: Path) -> None:
    base, folder = tmp_path / "base", tmp_path / "reward"
    (base / "transformer").mkdir(parents=True)
    (base / "transformer" / "weights").write_bytes(b"1")
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"base": str(base)}))
    first = reward_identity("dit_reward", {"path": str(folder)}, TARGET)
    assert reward_identity("dit_reward", {"path": str(folder)}, TARGET) == first
    (base / "transformer" / "weights").write_bytes(b"22")
    assert reward_identity("dit_reward", {"path": str(folder)}, TARGET) != first


@pytest.mark.parametrize("changed", ["my_rewards/bright.py", "my_rewards/tones/curve.py", "alone.py"])
def test_a_reward_is_another_once_its_code_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    (tmp_path / "my_rewards" / "tones").mkdir(parents=True)
    for name in ("my_rewards/__init__.py", "my_rewards/bright.py", "my_rewards/tones/curve.py", "alone.py"):
        (tmp_path / name).write_text("LEVEL = 1")
    monkeypatch.syspath_prepend(tmp_path)
    targets = {"my_rewards": "my_rewards.bright:Bright", "alone": "alone:Bright"}
    before = {name: reward_identity("bright", {"path": "x"}, target) for name, target in targets.items()}
    (tmp_path / changed).write_text("LEVEL = 2")
    for name, target in targets.items():
        is_same = reward_identity("bright", {"path": "x"}, target) == before[name]
        assert is_same == (not changed.startswith(name))


def test_a_rewards_code_is_all_that_its_scores_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [file.relative_to(ROOT).as_posix() for name in identity._CODE for file in identity.sources(name)]
    for name in ("rewards/hpsv2.py", "rewards/clip/preprocess.py", "flowrl/core/seeds.py", "flowrl/models/sd3.py"):
        assert name in files
    assert "flowrl/trainer.py" not in files
    before = code_digest(TARGET)
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda file: read(file) + b"#" * (file.name == "preprocess.py"))
    assert code_digest(TARGET) != before


def test_an_image_has_a_stamp_where_it_is_a_file_that_is_there(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    assert image_stamp(ImageRef(path=str(file))) == ""
    assert image_stamp(ImageRef(path="a\0.png")) == ""
    file.write_bytes(b"one")
    first = image_stamp(ImageRef(path=str(file)))
    assert first == image_stamp(ImageRef(path=str(file))) != ""
    os.utime(file, ns=(0, 1))
    assert image_stamp(ImageRef(path=str(file))) == "3 1" != first
    file.write_bytes(b"more")
    os.utime(file, ns=(0, 1))
    assert image_stamp(ImageRef(path=str(file))) == "4 1"
    assert image_stamp(ImageRef(path=str(file), row=3, column="jpg_0")) == ""  # the source has the file's


def test_data_are_other_data_once_their_file_has_changed(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text("one")
    source = DataSource(format="jsonl", path=str(file))
    first = source_identity(source)
    (tmp_path / "image.png").write_bytes(b"images are not looked at")
    assert source_identity(source) == first
    file.write_text("another")
    assert source_identity(source) != first
