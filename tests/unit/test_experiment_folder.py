"""What of an experiment's folder is compared, what is left out, and what is told about it."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from experiment_fixture import DITREWARD, HPSV3, write_experiment_folder
from page_reader import Page

from flowrl.config import ConfigError
from flowrl.matched.measures import measures_of
from flowrl.matched.page import write_experiment_report
from flowrl.matched.reading import read_experiment_folder

_ARMS = {"ditreward": DITREWARD, "hpsv3": HPSV3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment of two arms and three seeds."""
    return write_experiment_folder(tmp_path_factory.mktemp("experiment"), _ARMS)


def problems(folder: Path) -> tuple[str, ...]:
    return read_experiment_folder(folder).problems


def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "moved"))


def test_a_moved_folder_is_read_where_it_is(folder: Path, tmp_path: Path) -> None:
    moved = copied(folder, tmp_path)
    assert {run.directory.parent for run in read_experiment_folder(moved).runs} == {moved}
    assert problems(moved) == ()


def test_seeds_that_are_not_complete_in_every_arm_are_left_out(folder: Path, tmp_path: Path) -> None:
    moved = copied(folder, tmp_path)
    metrics = moved / "hpsv3-2" / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:12]))
    shutil.rmtree(moved / "ditreward-1")
    record = read_experiment_folder(moved)
    assert record.seeds == (0,)
    assert record.problems == (
        "ditreward-1 has not begun",
        "hpsv3-1, ditreward-2 and hpsv3-2 are left out: of seeds with which not every arm is complete",
    )


def test_while_nothing_is_complete_what_there_is_is_compared(tmp_path: Path) -> None:
    arms = {name: replace(arm, stop=stop) for (name, arm), stop in zip(_ARMS.items(), (12, 17), strict=True)}
    folder = write_experiment_folder(tmp_path, arms, seeds=(0,))
    assert {one.steps for one in measures_of(read_experiment_folder(folder))} == {(0, 5, 10)}
    assert any("step 12 of 20" in text for text in problems(folder))
    assert "after 10 steps" in Page(write_experiment_report(folder).read_text()).text


def test_nothing_to_compare_is_an_error(tmp_path: Path) -> None:
    folder = write_experiment_folder(tmp_path, {"ditreward": DITREWARD, "hpsv3": replace(HPSV3, stop=3)}, seeds=(0,))
    with pytest.raises(ConfigError, match=r"no seed with which two of ditreward, hpsv3 have been evaluated"):
        write_experiment_report(folder)


def test_an_arm_of_which_nothing_is_left_does_not_stop_the_others(tmp_path: Path) -> None:
    arms = _ARMS | {"broken": replace(HPSV3, stop=2)}
    folder = write_experiment_folder(tmp_path, arms, seeds=(0,))
    record = read_experiment_folder(folder)
    assert [arm.name for arm in record.arms] == ["ditreward", "hpsv3"]
    assert record.problems[0].startswith("Of broken no run was evaluated after training")


def test_a_difference_that_was_not_declared_is_told(folder: Path, tmp_path: Path) -> None:
    moved = copied(folder, tmp_path)
    config = moved / "hpsv3-1" / "config.yaml"
    config.write_text(re.sub(r"lr: \S+", "lr: 0.5", config.read_text()))
    assert problems(moved) == (
        "ditreward-1 and hpsv3-1 are not matched: they differ in optim.lr, which is not declared. A difference in "
        "outcome may come from there. (seed 1)",
    )


def test_arms_that_do_not_start_alike_are_told(folder: Path, tmp_path: Path) -> None:
    moved = copied(folder, tmp_path)
    path = moved / "hpsv3-0" / "evaluations" / "step_000000.json"
    kept = json.loads(path.read_text())
    kept["scores"]["oracle"][3][0] += 1e-6
    path.write_text(json.dumps(kept))
    assert problems(moved) == (
        "ditreward-0 and hpsv3-0 do not start alike: their first evaluations differ in oracle. (seed 0)",
    )


def test_runs_in_the_folders_of_others_are_refused(folder: Path, tmp_path: Path) -> None:
    moved = copied(folder, tmp_path)
    (moved / "hpsv3-0").rename(moved / "aside")
    (moved / "ditreward-0").rename(moved / "hpsv3-0")
    (moved / "aside").rename(moved / "ditreward-0")
    with pytest.raises(ConfigError, match=r"ditreward-0: is not the run of this name .* rewards\.train"):
        write_experiment_report(moved)


def test_an_answer_before_the_end_says_so(folder: Path, tmp_path: Path) -> None:
    moved = copied(folder, tmp_path)
    (moved / "hpsv3-2" / "evaluations" / "step_000020.json").unlink()
    text = Page(write_experiment_report(moved).read_text()).text
    assert "The answer is taken at step 15, not 20: not every run was evaluated later." in text


def test_a_page_is_html(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--out must be a page and end in \.html"):
        write_experiment_report(folder, tmp_path / "page")


def test_scores_that_are_not_those_of_their_run_are_told(folder: Path, tmp_path: Path) -> None:
    moved = copied(folder, tmp_path)
    (moved / "hpsv3-1" / "evaluations" / "step_000005.json").unlink()
    path = moved / "hpsv3-0" / "evaluations" / "step_000020.json"
    kept = json.loads(path.read_text())
    kept["scores"]["oracle"] = [[score + 0.1 for score in row] for row in kept["scores"]["oracle"]]
    path.write_text(json.dumps(kept))
    assert problems(moved) == (
        "The scores of oracle that hpsv3-0 kept at step 20 are not those that it logged.",
        "hpsv3-1 was evaluated at step 5, but its scores are not there.",
    )


def test_a_torn_evaluation_is_named_and_its_step_left_out(folder: Path, tmp_path: Path) -> None:
    moved = copied(folder, tmp_path)
    path = moved / "hpsv3-0" / "evaluations" / "step_000010.json"
    path.write_text(path.read_text()[:100])
    assert any(f"{path}: is no evaluation" in text for text in problems(moved))
    assert {one.steps for one in measures_of(read_experiment_folder(moved))} == {(0, 5, 15, 20)}


def test_a_sample_that_one_run_has_no_score_of_is_left_out_of_all(folder: Path, tmp_path: Path) -> None:
    moved = copied(folder, tmp_path)
    path = moved / "hpsv3-0" / "evaluations" / "step_000010.json"
    kept = json.loads(path.read_text())
    kept["scores"]["hpsv3"][3] = [None] * 4
    kept["scores"]["hpsv3"][5][0] = None
    path.write_text(json.dumps(kept))
    found = {one.name: one for one in measures_of(read_experiment_folder(moved))}
    assert (found["hpsv3"].dropped, len(found["hpsv3"].prompts)) == (1, 63)
    assert found["hpsv3"].missing == (0, 5)
    assert (found["oracle"].dropped, found["oracle"].missing) == (0, (0, 0))
    assert "prompt 3" not in found["hpsv3"].prompts
    other = json.loads((moved / "ditreward-2" / "evaluations" / "step_000020.json").read_text())["scores"]["hpsv3"][5]
    place = found["hpsv3"].prompts.index("prompt 5")
    assert found["hpsv3"].values[0, 2, -1, place] == pytest.approx(np.mean(other[1:]))
    text = Page(write_experiment_report(moved).read_text()).text
    assert "hpsv3 lacks scores: 5 of hpsv3. These samples are left out of every run." in text


def test_what_was_evaluated_after_the_last_logged_step_does_not_count(folder: Path, tmp_path: Path) -> None:
    moved = copied(folder, tmp_path)
    for run in ("hpsv3-0", "hpsv3-1", "hpsv3-2"):
        metrics = moved / run / "metrics.jsonl"
        metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:-1]))
    assert {one.steps for one in measures_of(read_experiment_folder(moved))} == {(0, 5, 10, 15)}
    assert write_experiment_report(moved).is_file()
