"""The page about a run: its numbers are those of the run, its words follow from them, and nothing in it is trusted."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from page_reader import Page
from run_fixture import FakeRun, write_run

from flowrl.config import ConfigError, RewardSpec
from flowrl.metrics import read_metrics
from flowrl.report.run_page import description
from flowrl.report.run_record import part_of, read_run
from flowrl.report.run_report import write_report
from flowrl.report.verdict import Change, changes, verdict, violations

_SMALL = FakeRun(steps=20, every=10, prompts=("a large red circle on sand", "a small pink square on sky"), columns=2)


def report(directory: Path) -> Page:
    return Page(write_report(directory).read_text(encoding="utf-8"))


def test_curves_hold_the_numbers_of_the_run(tmp_path: Path) -> None:
    directory = write_run(tmp_path, FakeRun())
    rows = read_metrics(directory / "metrics.jsonl")
    found = report(directory).charts()
    (trained,) = found['["dit_reward"]']["series"]
    assert trained["points"] == [
        [row["step"], row["eval/dit_reward/mean"], row["eval/dit_reward/sem"]]
        for row in rows
        if "eval/dit_reward/mean" in row
    ]
    (kl,) = found['["kl"]']["series"]
    assert kl["points"] == [[row["step"], row["policy/kl"]] for row in rows if "policy/kl" in row]
    parts = found['["attributes", "relation", "shape", "cleanliness"]']["series"]
    assert [line["points"][-1][1] for line in parts] == [
        rows[-1][f"eval/oracle_{name}/mean"] for name in ("attributes", "relation", "shape", "cleanliness")
    ]


@pytest.mark.parametrize(("paired", "error"), [(True, "0.010"), (False, "0.06")])
def test_the_headline_is_computed(tmp_path: Path, paired: bool, error: str) -> None:
    # 0.01 is what the run logged of the differences prompt by prompt; else sqrt(2) * 0.04 of two independent means.
    directory = write_run(tmp_path, FakeRun(paired=paired))
    rows = read_metrics(directory / "metrics.jsonl")
    before, after = rows[0]["eval/dit_reward/mean"], rows[-1]["eval/dit_reward/mean"]
    page = report(directory)
    digits = len(error) - 2
    moved = f"{after - before:+.{digits}f} \u00b1 {error}"
    assert f"dit_reward rose from {before:.{digits}f} to {after:.{digits}f} ({moved})." in page.text
    assert "Not trained on: hpsv3 rose" in page.text
    assert "complete" in page.text
    assert "60 steps of 12 prompts \u00d7 16 images" in page.text
    assert "exploiting" not in page.text
    assert "Read this first" not in page.text


def test_a_reward_that_is_gamed_is_called_out(tmp_path: Path) -> None:
    page = report(write_run(tmp_path, FakeRun(oracle_gain=-0.2)))
    assert "dit_reward rose while oracle" in page.text
    assert "the policy may be exploiting what the reward does not see" in page.text


@pytest.mark.parametrize(
    ("before", "after", "sem", "movement"),
    [(1.0, 1.3, 0.1, "rose"), (1.0, 1.28, 0.1, "held"), (1.0, 0.7, 0.1, "fell"), (1.0, 1.0, 0.0, "held"),
     (1.0, 1.001, 0.0, "rose"), (1.0, 1.00001, 0.0, "held"), (1.0, 1.00001, 1e-7, "held")],
)  # fmt: skip
def test_a_change_is_clear_beyond_two_standard_errors(before: float, after: float, sem: float, movement: str) -> None:
    change = Change(name="a", trained=True, first_step=0, last_step=9, before=before, after=after,
                    before_sem=sem, after_sem=sem)  # fmt: skip
    assert change.sem == pytest.approx(math.sqrt(2) * sem)
    assert change.movement == movement


def test_samples_stand_in_pairs_with_their_scores(tmp_path: Path) -> None:
    directory = write_run(tmp_path, _SMALL)
    page = report(directory)
    images = page.images()
    assert len(images) == 2 * 2 * 2
    first, last = read_run(directory).sheets()
    assert (first.step, last.step) == (0, 20)
    expected = [sheet.cell(row, column) for row in range(2) for sheet in (first, last) for column in range(2)]
    assert [image.convert("RGB").tobytes() for image in images] == [image.tobytes() for image in expected]
    scores = [attributes["data-score"] for _, attributes in page.tags if "data-score" in attributes]
    assert scores == ["dit_reward", "oracle"] * 8
    assert page.text.count("before") >= 2
    titles = [attributes["title"] for tag, attributes in page.tags if tag == "img"]
    expected_title = [f"{name} {last.score(name, 0, 0):.3f}" for name in ("dit_reward", "hpsv3", "oracle")]
    assert titles[2] == "\n".join(expected_title)


def test_large_images_are_reduced(tmp_path: Path) -> None:
    page = report(write_run(tmp_path, replace(_SMALL, image_size=512, prompts=_SMALL.prompts[:1])))
    assert {image.size for image in page.images()} == {(320, 320)}


def test_time_and_traffic_are_those_of_the_run(tmp_path: Path) -> None:
    directory = write_run(tmp_path, _SMALL)
    rows = read_metrics(directory / "metrics.jsonl")[1:]
    page = report(directory)
    update = sum(row["time/update_s"] for row in rows)
    assert re.search(rf"update {update / 20:.1f} s 1 min {update - 60:02.0f} s", page.text)
    assert "everything else 0.12 s 2.4 s" in page.text
    assert "trajectories 31.5 MB 629 MB" in page.text
    assert "Peak memory, driver and actors 5.94 GiB" in page.text
    assert (
        "checkpoint" not in page.text.split("Time, traffic and memory")[1].split("How it was made")[0]
    )  # took no time


def test_origin_config_and_glossary_are_there(tmp_path: Path) -> None:
    directory = write_run(tmp_path, _SMALL)
    page = report(directory)
    assert "flowrl train configs/pocket/ditreward.yaml run.seed=0" in page.text
    assert "8f14e45fceea" in page.text
    assert "prompts_per_step: 12" in page.text
    assert "eval.every 20 10" in page.text  # what differs from the defaults, with the default
    assert f"What the {len(read_run(directory).keys())} metrics mean" in page.text
    assert "Length of the gradient before it is clipped" in page.text


_HOSTILE = "<script>alert('x')</script> & \"><img src=//evil.example/a.png onerror=alert(1)>"


def test_nothing_from_a_file_becomes_markup(tmp_path: Path) -> None:
    directory = write_run(tmp_path, replace(_SMALL, prompts=(_HOSTILE,)))
    config = (directory / "config.yaml").read_text()
    (directory / "config.yaml").write_text(config.replace("seed: 0", f"seed: 0  # {_HOSTILE}", 1))
    environment = json.loads((directory / "env.json").read_text())
    (directory / "env.json").write_text(json.dumps(environment | {"command": _HOSTILE, "gpus": [_HOSTILE]}))
    with (directory / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 21, f"eval/{_HOSTILE.replace('/', '|')}/mean": 1.0}) + "\n")
    page = report(directory)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert all(attributes["src"].startswith("data:image/") for tag, attributes in page.tags if tag == "img")
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    assert page.text.count("<script>alert('x')") >= 4  # shown as text: prompt, config, command, machine


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    text = write_report(write_run(tmp_path, _SMALL)).read_text(encoding="utf-8")
    assert not re.findall(r"(?:src|href)=\"(?!data:)", text)
    assert "http:" not in text
    assert "https:" not in text
    assert "@import" not in text
    assert "url(" not in text
    policy = next(attributes for _, attributes in Page(text).tags if "http-equiv" in attributes)
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert policy["content"].startswith("default-src 'none'; img-src data:;")


def test_a_killed_run_says_so(tmp_path: Path) -> None:
    directory = write_run(tmp_path, replace(_SMALL, stop=13))
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 14, "policy/k')
    page = report(directory)
    assert "stopped at step 13 of 20" in page.text
    assert f"Continue it with: flowrl train --resume {directory}" in page.text
    assert "Step 10" in page.text  # the last evaluation


def test_one_evaluation_claims_nothing(tmp_path: Path) -> None:
    page = report(write_run(tmp_path, replace(_SMALL, stop=0)))
    assert "Evaluated before training: dit_reward 1.20 \u00b1 0.04." in page.text
    assert "nothing can be said about learning" in page.text


def test_an_evaluation_alone_says_so(tmp_path: Path) -> None:
    page = report(write_run(tmp_path, replace(_SMALL, steps=0)))
    assert "Evaluated: dit_reward 1.20 \u00b1 0.04." in page.text
    assert "The run did not train." in page.text
    assert "rose" not in page.text.split("Glossary")[0]
    assert len(page.images()) == 4


@pytest.mark.parametrize("keep", [0, 1])
def test_a_run_that_hardly_began_has_a_page(tmp_path: Path, keep: int) -> None:
    directory = write_run(tmp_path, _SMALL)
    lines = (directory / "metrics.jsonl").read_text().splitlines()[1 : 1 + keep]  # a step without evaluation, or none
    (directory / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    for file in (directory / "samples").iterdir():
        file.unlink()
    (directory / "env.json").unlink()
    page = report(directory)
    assert "No evaluation was recorded" in page.text
    assert f"step {keep} of 20 is the last one on record" in page.text
    assert len(page.charts()) == (9 if keep else 0)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    directory = write_run(tmp_path, _SMALL)
    (directory / "config.yaml").write_text("run: {name: x, surprise: 1}")
    (directory / "metrics.jsonl").write_text('{"step": 0}\nnonsense\n{"step": 2}\n')
    page = report(directory)
    assert "The configuration cannot be read by this version" in page.text
    assert "The metrics cannot be read" in page.text
    assert "line 2" in page.text
    assert "surprise: 1" in page.text


def test_without_a_readable_config_the_metrics_tell_what_was_trained(tmp_path: Path) -> None:
    directory = write_run(tmp_path, _SMALL)
    (directory / "config.yaml").write_text("run: {surprise: 1}")
    record = read_run(directory)
    assert record.trained_rewards == ["dit_reward"]
    assert record.measures[0] == "dit_reward"
    assert "oracle_shape" in record.measures
    assert verdict(record)[0].text.startswith("dit_reward rose")


def test_violated_gates_are_listed_first(tmp_path: Path) -> None:
    directory = write_run(tmp_path, replace(_SMALL, ratio=4e-4))
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    rows[7]["reward/dit_reward/invalid"] = 0.25
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ratio, invalid = violations(read_run(directory))
    assert ratio == (
        "The replay does not repeat the rollout: policy/ratio_absdev_max must be exactly 0 on the CPU, "
        "but is up to 0.000400 (step 1; 20 of 20 steps)."
    )
    assert invalid == (
        "dit_reward failed on 25% of the images of step 7; at most 5% may fail (rewards.max_invalid_fraction)."
    )
    assert "Read this first" in report(directory).text


def test_on_a_gpu_the_configured_gate_counts(tmp_path: Path) -> None:
    directory = write_run(tmp_path, replace(_SMALL, ratio=4e-4))
    config = (directory / "config.yaml").read_text().replace("device: cpu", "device: cuda")
    config = config.replace("max_ratio_absdev: 1.0e-05", "max_ratio_absdev: 0.001")
    (directory / "config.yaml").write_text(config)
    assert violations(read_run(directory)) == []
    (directory / "config.yaml").write_text(config.replace("max_ratio_absdev: 0.001", "max_ratio_absdev: 0.0001"))
    (ratio,) = violations(read_run(directory))
    assert "at most 0.000100 (gate.max_ratio_absdev)" in ratio


def test_a_sum_of_rewards_says_what_each_adds_under_its_label(tmp_path: Path) -> None:
    record = read_run(write_run(tmp_path, FakeRun()))
    assert record.config is not None
    record.config.rewards.train = [
        RewardSpec(name="hpsv3", scale=0.1, weight=0.5),
        RewardSpec(name="dit_reward", label="frozen", normalise="group", scale=-3.0, weight=2.0),
    ]
    words = "on hpsv3 \u00d7 0.05 and frozen \u00d7 -2 (z-scores of the prompt): 60 steps"
    assert words in description(record)
    assert record.trained_rewards == ["frozen", "hpsv3"]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must be the directory of a run, but there is no .*config\.yaml"):
        write_report(tmp_path)


def test_out_is_where_it_was_asked_for(tmp_path: Path) -> None:
    directory = write_run(tmp_path, _SMALL)
    assert write_report(directory, tmp_path / "page.html") == tmp_path / "page.html"
    assert not (directory / "report.html").exists()
    assert write_report(directory) == directory / "report.html"


def test_parts_belong_to_the_reward_that_they_are_of_and_not_to_one_with_a_like_name() -> None:
    names = ["oracle", "oracle_shape", "hpsv3", "hpsv3_1", "clip", "clip_large", "or"]
    assert [part_of(name, names) for name in names] == [None, "oracle", None, None, None, None, None]


def test_measures_keep_their_order(tmp_path: Path) -> None:
    found = [change.name for change in changes(read_run(write_run(tmp_path, _SMALL)))]
    assert found == [
        *("dit_reward", "hpsv3", "oracle"),
        *("oracle_attributes", "oracle_relation", "oracle_shape", "oracle_cleanliness"),
    ]
