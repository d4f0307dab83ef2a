"""The page about two runs: which are taken, whether they are matched, and what it says of them."""

from __future__ import annotations

import json
import re
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from page_reader import Page
from run_fixture import PROMPTS, FakeRun, environment, write_run

from flowrl.base.environment import write_environments
from flowrl.config import ConfigError
from flowrl.metrics import read_metrics
from flowrl.report.comparison import write_comparison
from flowrl.report.run_record import read_run
from flowrl.report.verdict import comparison_verdict, mismatches

_DIT = FakeRun(steps=20, every=10, prompts=tuple(PROMPTS[:3]), columns=2)
_HPS = replace(_DIT, name="hpsv3", reward="hpsv3", other="dit_reward", oracle_gain=-0.1)


def compared(first: Path, second: Path) -> Page:
    return Page(write_comparison(first, second).read_text(encoding="utf-8"))


def started(directory: Path, run: FakeRun, hour: int) -> Path:
    write_environments(
        directory / "env.json", [replace(environment(run), started=f"2026-01-31T{hour:02d}:00:00+00:00")]
    )
    return directory


def test_every_curve_overlays_both_runs(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, run) for run in (_DIT, _HPS)]
    rows = [read_metrics(run / "metrics.jsonl") for run in runs]
    page = compared(*runs)
    found = [json.loads(attributes["data-chart"]) for _, attributes in page.tags if "data-chart" in attributes]
    expected = ["dit_reward", "hpsv3", "oracle"]
    expected += ["oracle_attributes", "oracle_relation", "oracle_shape", "oracle_cleanliness"]
    for chart, measure in zip(found, expected, strict=False):
        assert [line["name"] for line in chart["series"]] == ["dit_reward run", "hpsv3 run"]
        for line, arm in zip(chart["series"], rows, strict=True):
            assert [point[1] for point in line["points"]] == [
                row[f"eval/{measure}/mean"] for row in arm if f"eval/{measure}/mean" in row
            ]
        assert {line["style"] for line in chart["series"]} == {"marked", "hollow"}  # told apart without colour
    assert len(found) == len(expected) + 1 + 3  # diversity, and three curves of the training


def test_the_verdict_follows_the_oracle(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, run) for run in (_DIT, _HPS)]
    ends = [read_metrics(run / "metrics.jsonl")[-1]["eval/oracle/mean"] for run in runs]
    kept = [json.loads((run / "evaluations" / "step_000020.json").read_text())["scores"]["oracle"] for run in runs]
    gaps = [sum(one) / 4 - sum(two) / 4 for one, two in zip(*kept, strict=True)]
    error = statistics.stdev(gaps) / 8  # 64 prompts
    assert error < 0.005  # far below the 0.011 of two independent means
    page = compared(*runs)
    assert (
        f"By the oracle the dit_reward run ends higher: {ends[0]:.3f} against {ends[1]:.3f} for the hpsv3 run "
        f"(apart by {ends[0] - ends[1]:.3f} \u00b1 {error:.3f})." in page.text
    )
    assert re.search(r"In the hpsv3 run hpsv3 rose \(.*?\), dit_reward rose \(.*?\) and oracle fell \(", page.text)
    assert "Read this first" not in page.text


@pytest.mark.parametrize("spoil", ["missing", "other prompts", "torn"])
def test_without_common_prompts_the_runs_count_as_independent(tmp_path: Path, spoil: str) -> None:
    runs = [write_run(tmp_path, run) for run in (_DIT, _HPS)]
    path = runs[1] / "evaluations" / "step_000020.json"
    text = path.read_text()
    path.write_text({"missing": "", "other prompts": text.replace("prompt 7", "else"), "torn": text[:-40]}[spoil])
    assert comparison_verdict(*(read_run(run) for run in runs))[0].text.endswith("\u00b1 0.011).")


def test_equal_ends_are_called_level(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path, run)) for run in (_DIT, replace(_HPS, oracle_gain=_DIT.oracle_gain))]
    assert comparison_verdict(*runs)[0].text.startswith("By the oracle the runs end level: ")


def test_both_losing_is_no_victory(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path, replace(run, oracle_gain=gain))) for run, gain in ((_DIT, -0.1), (_HPS, -0.3))]
    headline = comparison_verdict(*runs)[0]
    assert headline.text.endswith("though both fell.")
    assert headline.tone == "bad"


def test_samples_show_before_and_both_after(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, run) for run in (_DIT, _HPS)]
    page = compared(*runs)
    sheets = [read_run(run).sheets() for run in runs]
    shown = [sheets[0][0], sheets[0][-1], sheets[1][-1]]
    expected = [sheet.cell(row, column).tobytes() for row in range(3) for sheet in shown for column in range(2)]
    assert [image.convert("RGB").tobytes() for image in page.images()] == expected
    labels = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert labels[:6:2] == [f"{label}: {PROMPTS[0]}, sample 1" for label in ("before", "dit_reward run", "hpsv3 run")]


def test_costs_stand_side_by_side(tmp_path: Path) -> None:
    page = compared(*(write_run(tmp_path, run) for run in (_DIT, _HPS)))
    assert "trajectories 31.5 MB 31.5 MB" in page.text
    assert "busy: decoding 0 s 0.90 s" in page.text
    assert "busy: scorers 1.2 s 2.9 s" in page.text
    assert re.search(r"update 4\.\d s 4\.\d s", page.text)


def test_matched_runs_raise_no_warning_and_others_do(tmp_path: Path) -> None:
    first = read_run(write_run(tmp_path, _DIT))
    assert mismatches(first, read_run(write_run(tmp_path, _HPS))) == []
    other = write_run(tmp_path, replace(_HPS, name="other", every=5))
    config = (other / "config.yaml").read_text().replace("lr: 0.0003", "lr: 0.001")
    (other / "config.yaml").write_text(config)
    assert mismatches(first, read_run(other)) == [
        "The runs are not matched: besides the reward they differ in eval.every and optim.lr. "
        "A difference in outcome may come from there."
    ]
    page = compared(first.directory, other)
    assert "Read this first" in page.text
    assert "optim.lr not matched 0.0003 0.001" in page.text
    assert "rewards.train dit_reward hpsv3" in page.text


def test_runs_that_start_apart_are_called_out(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, run) for run in (_DIT, _HPS)]
    lines = (runs[1] / "metrics.jsonl").read_text().splitlines()
    lines[0] = json.dumps(json.loads(lines[0]) | {"eval/oracle/mean": 0.6})
    (runs[1] / "metrics.jsonl").write_text("\n".join(lines))
    (problem,) = mismatches(*(read_run(run) for run in runs))
    assert problem == "The runs do not start alike: their first evaluations differ in oracle."


def test_two_runs_of_one_reward_go_by_their_names(tmp_path: Path) -> None:
    page = compared(write_run(tmp_path, _DIT), write_run(tmp_path, replace(_DIT, name="again")))
    assert "ditreward run" in page.text
    assert "again run" in page.text
    assert "Both runs were trained on dit_reward." in page.text


def test_unfinished_runs_have_a_page(tmp_path: Path) -> None:
    page = compared(write_run(tmp_path, _DIT), write_run(tmp_path, replace(_HPS, stop=3)))
    assert "At least one run was not evaluated after training" in page.text
    assert "In the hpsv3 run: The run is not complete" in page.text


def test_hostile_prompts_stay_text(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>"
    page = compared(*(write_run(tmp_path, replace(run, prompts=(hostile,))) for run in (_DIT, _HPS)))
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert hostile in page.text


def test_a_run_is_not_compared_with_itself(tmp_path: Path) -> None:
    run = write_run(tmp_path, _DIT)
    (tmp_path / "latest").symlink_to("ditreward")
    with pytest.raises(ConfigError, match="needs two different runs"):
        write_comparison(run, tmp_path / "latest")


def test_the_page_stands_beside_the_second_run(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, run) for run in (_DIT, _HPS)]
    assert write_comparison(*runs) == tmp_path / "compare-ditreward-hpsv3.html"
    assert write_comparison(*runs, tmp_path / "page.html") == tmp_path / "page.html"
