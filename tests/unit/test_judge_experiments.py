"""Judging the runs of an experiment: which sheets, in which order, and where the results go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from flowrl import cli
from flowrl.matrix.manifest import read_manifest
from flowrl.samples import write_sheet

ROOT = Path(__file__).parents[2]
PROMPTS = ["a large red circle on sand", "a small blue square on snow"]
TEXT = f"""question: Which?
base: {ROOT}/configs/pocket/ditreward.yaml
arms: {{one: {{}}, two: {{overrides: [rewards.train.0.weight=2]}}}}
differ: [rewards]
seeds: [0, 1]
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An experiment of four runs in an empty working directory; none has begun."""
    monkeypatch.chdir(tmp_path)
    Path("weights.yaml").write_text(TEXT, encoding="utf-8")
    assert cli.main(["matrix", "weights.yaml"]) == 0
    return Path("runs/weights-pocket")


def begin(run: Path, *steps: int) -> None:
    """Let a run have come as far as to have sheets of these steps."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").touch()
    for step in steps:
        images = torch.randint(0, 256, (4, 3, 64, 64), generator=torch.Generator().manual_seed(step)).byte()
        write_sheet(run / "samples", step, images, PROMPTS, {})


def judged(out: Path) -> list[dict[str, Any]]:
    """The lines of the results."""
    return [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]


def sheets(out: Path) -> list[tuple[str, int]]:
    """Run and step of each sheet that was judged, in order."""
    return list(dict.fromkeys((row["run"], row["step"]) for row in judged(out)))


@pytest.mark.parametrize(
    "name", ["runs/weights-pocket", "weights-pocket", "runs/weights-pocket/manifest.jsonl", "weights.yaml"]
)
def test_an_experiment_is_judged_in_its_folder_run_by_run_as_far_as_each_has_come(folder: Path, name: str) -> None:
    begin(folder / "two-1", 0)
    begin(folder / "two-0", 0, 20)
    begin(folder / "one-0", 0, 20)
    assert cli.main(["judge", name, "--judge", "oracle"]) == 0
    one, two, _, late = (str(element.dir) for element in read_manifest(folder / "manifest.jsonl"))
    assert sheets(folder / "judged") == [(one, 0), (one, 20), (two, 0), (two, 20), (late, 0)]
    assert [row["prompt"] for row in judged(folder / "judged")[:4]] == [text for text in PROMPTS for _ in "12"]
    assert all(1.0 <= row["scores"]["overall"] <= 10.0 for row in judged(folder / "judged"))


def test_a_step_is_of_the_runs_that_have_it_and_of_plain_runs_all_must(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(folder / "one-0", 0, 20, 40)
    begin(folder / "two-0", 0, 20)
    begin(folder / "one-1")
    words = ["--judge", "oracle", "--step", "40", "--step", "20"]
    assert cli.main(["judge", str(folder), *words]) == 0
    one, two = (str(folder / name) for name in ("one-0", "two-0"))
    assert sheets(folder / "judged") == [(one, 40), (one, 20), (two, 20)]
    assert cli.main(["judge", one, two, *words, "--out", "plain"]) == 2
    assert f"--step 40: {two} has samples of the steps 0, 20" in capsys.readouterr().err
    assert cli.main(["judge", str(folder), "--judge", "oracle", "--step", "30"]) == 2
    assert f"--step 30: the runs of {folder} have samples of the steps 0, 20, 40" in capsys.readouterr().err


def test_the_runs_of_a_folder_that_was_moved_are_those_inside(folder: Path) -> None:
    begin(folder / "one-0", 0)
    moved = folder.rename("elsewhere")
    assert cli.main(["judge", "elsewhere", "--judge", "oracle"]) == 0
    assert sheets(moved / "judged") == [("elsewhere/one-0", 0)]


def test_an_experiment_without_a_sheet_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin(folder / "one-0")
    assert cli.main(["judge", str(folder), "--judge", "oracle"]) == 2
    assert f"{folder}: no run of it has sample sheets yet; flowrl matrix EXPERIMENT --run" in capsys.readouterr().err
    assert not (folder / "judged").exists()


def test_what_is_not_one_experiment_says_where_its_results_go(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin(folder / "one-0", 0)
    for places in ([f"{folder}/one-0"], [str(folder), f"{folder}/one-0"]):
        assert cli.main(["judge", *places, "--judge", "oracle"]) == 2
        assert "--out FOLDER says where the results go; only that of one experiment may be" in capsys.readouterr().err
    assert cli.main(["judge", str(folder), f"{folder}/one-0", "--judge", "oracle", "--out", "both"]) == 0
    assert len(judged(Path("both"))) == 8


def test_an_experiment_and_images_are_not_judged_together(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin(folder / "one-0", 0)
    Path("images").mkdir()
    Path("images/manifest.jsonl").write_text("", encoding="utf-8")  # of somebody else
    assert cli.main(["judge", str(folder), "images", "--judge", "oracle", "--out", "both"]) == 2
    assert f"{folder} is an experiment and images is not: give runs or images, not both" in capsys.readouterr().err
