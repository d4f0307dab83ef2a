"""The page about an experiment: what is compared, what it says, and the files beside it."""

from __future__ import annotations

import csv
import json
import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from experiment_fixture import DITREWARD, HPSV3, QUESTION, write_experiment_folder
from page_reader import Page
from run_fixture import FakeRun, write_run

from flowrl.config import ConfigError
from flowrl.matched.comparison import findings
from flowrl.matched.measures import measures_of
from flowrl.matched.page import write_comparison, write_experiment_report
from flowrl.matched.reading import read_experiment_folder
from flowrl.matched.verdict import verdict
from flowrl.report.wording import fixed

_ARMS = {"ditreward": DITREWARD, "hpsv3": HPSV3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment of two arms and three seeds, with its report."""
    found = write_experiment_folder(tmp_path_factory.mktemp("experiment"), _ARMS)
    write_experiment_report(found)
    return found


def test_the_page_tells_question_verdict_and_numbers(folder: Path) -> None:
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    found = findings(read_experiment_folder(folder), measures_of(read_experiment_folder(folder)))
    said = verdict(found)
    assert said.outcome == "settled"
    assert "ditreward trains the better model" in said.headline.text
    for sentence in (said.headline, *said.support):
        assert sentence.text in page.text
    assert QUESTION in page.text
    assert "Read this first" not in page.text
    last = found.of(next(one for one in found.measures if one.name == "oracle"))[0].at[-1]
    assert fixed(last.mean, 3, signed=True) in page.text
    titles = ["oracle", "dit_reward", "hpsv3", "oracle: cleanliness", "KL to the start"]
    assert all(title in page.text for title in titles)


def test_the_page_needs_no_network(folder: Path) -> None:
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    addresses = [value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "href")]
    assert addresses
    assert all(address.startswith("data:") for address in addresses)


def test_images_are_of_base_and_both_arms(folder: Path) -> None:
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    texts = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    prompt = DITREWARD.prompts[0]
    mine = [text.removeprefix(f"{prompt}: ") for text in texts if text.startswith(prompt)]
    steps = [f"{arm} after step {step}" for arm in _ARMS for step in (5, 10, 15, 20)]
    assert sorted(mine) == sorted(["before training", *steps])


def test_the_files_hold_the_numbers_of_the_page(folder: Path) -> None:
    beside = folder / "report"
    curves = list(csv.DictReader((beside / "curves.csv").read_text().splitlines()))
    row = next(
        one
        for one in curves
        if (one["arm"], one["seed"], one["measure"], one["step"]) == ("hpsv3", "1", "oracle", "20")
    )
    kept = json.loads((folder / "hpsv3-1" / "evaluations" / "step_000020.json").read_text())["scores"]["oracle"]
    assert float(row["mean"]) == pytest.approx(np.mean(kept))
    assert int(row["images"]) == 20 * 192
    result = json.loads((beside / "result.json").read_text())
    assert result["outcome"] == "settled"
    assert result["decided_by"] == "oracle"
    differences = list(csv.DictReader((beside / "differences.csv").read_text().splitlines()))
    line = next(one for one in differences if one["measure"] == "oracle" and one["step"] == "20")
    last = next(one for one in result["differences"] if one["measure"] == "oracle" and one["step"] == 20)
    assert (
        float(line["difference"])
        == last["mean"]
        == pytest.approx(
            np.mean([_mean(folder, f"ditreward-{seed}") - _mean(folder, f"hpsv3-{seed}") for seed in range(3)])
        )
    )
    assert [float(line["low"]), float(line["high"])] == [last["prompts"]["low"], last["prompts"]["high"]]


def _mean(folder: Path, run: str) -> float:
    kept = json.loads((folder / run / "evaluations" / "step_000020.json").read_text())
    return float(np.mean(kept["scores"]["oracle"]))


def test_figures_are_vector_files(folder: Path) -> None:
    figures = sorted((folder / "report" / "figures").glob("*.svg"))
    assert {"oracle.svg", "oracle-difference.svg", "kl-to-the-start.svg"} <= {path.name for path in figures}
    for path in figures:
        assert ET.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_tensorboard_overlays_the_arms(folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for arm in _ARMS:
        events = EventAccumulator(str(folder / "report" / "tensorboard" / arm))
        events.Reload()
        values = {
            what: {event.step: event.value for event in events.Scalars(f"held out/oracle, {what}")}
            for what in ("mean of seeds", "lowest seed", "highest seed")
        }
        seeds = [_mean(folder, f"{arm}-{seed}") for seed in range(3)]
        assert values["mean of seeds"][20] == pytest.approx(np.mean(seeds))
        assert (values["lowest seed"][20], values["highest seed"][20]) == pytest.approx((min(seeds), max(seeds)))


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
    assert "The answer is taken at step 15, not 20: not every run was measured later." in text


def test_a_page_is_html(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--out must be a page and end in \.html"):
        write_experiment_report(folder, tmp_path / "page")


def test_a_torn_evaluation_is_named_and_its_step_left_out(folder: Path, tmp_path: Path) -> None:
    moved = copied(folder, tmp_path)
    path = moved / "hpsv3-0" / "evaluations" / "step_000010.json"
    path.write_text(path.read_text()[:100])
    assert len(problems(moved)) == 1
    assert str(path) in problems(moved)[0]
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


def judged(folder: Path, dimensions: Sequence[str] = ("alignment", "overall"), steps: Sequence[int] = (0, 20)) -> None:
    """What a judge would say who prefers hpsv3's images."""
    lines = []
    for run in sorted(folder.glob("*-?")):
        for step in steps:
            for row, prompt in enumerate(DITREWARD.prompts):
                score = 5 + 0.1 * row + (2 if run.name.startswith("hpsv3") and step else 0)
                lines.append(
                    {
                        "file": f"{run}/samples/step_{step:06d}.png#{row}.0",
                        "prompt": prompt,
                        "outcome": "scored",
                        "run": str(run),
                        "step": step,
                        "scores": dict.fromkeys(dimensions, score),
                    }
                )
    lines.append(lines[-1] | {"outcome": "refused", "scores": None})
    (folder / "judged").mkdir()
    (folder / "judged" / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "judged" / "summary.json").write_text(json.dumps({"setting": {"judge": "a-model"}}))


def test_a_judge_decides_where_it_is_asked_to(tmp_path: Path) -> None:
    folder = write_experiment_folder(tmp_path, _ARMS, decided_by=("judge_overall", "oracle"))
    judged(folder)
    page = Page(write_experiment_report(folder).read_text())
    assert "By the judge (overall), hpsv3 trains the better model: 7.35 against 5.35 of ditreward" in page.text
    assert "The judge is a-model." in page.text
    found = {one.name: one for one in measures_of(read_experiment_folder(folder))}
    assert found["judge_alignment"].part_of == "judge_overall"
    assert found["judge_overall"].steps == (0, 20)


def test_a_judge_who_saw_but_the_start_decides_nothing(tmp_path: Path) -> None:
    folder = write_experiment_folder(tmp_path, _ARMS, decided_by=("judge_overall", "oracle"))
    judged(folder, steps=(0,))
    text = Page(write_experiment_report(folder).read_text()).text
    assert "By the oracle, ditreward trains the better model" in text
    results = folder / "judged" / "results.jsonl"
    results.write_text("".join(line + "\n" for line in results.read_text().splitlines() if "hpsv3-0" not in line))
    assert "What the judge said is not used" in Page(write_experiment_report(folder).read_text()).text


def test_what_is_no_judging_is_told(tmp_path: Path) -> None:
    folder = write_experiment_folder(tmp_path, _ARMS, seeds=(0,))
    judged(folder)
    (folder / "judged" / "summary.json").write_text("{}")
    assert [text.partition(":")[0] for text in problems(folder)] == ["What was judged cannot be read"]


def test_two_loose_runs_make_the_same_page(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, replace(arm, name=name)) for name, arm in _ARMS.items()]
    out = write_comparison(runs)
    assert out == tmp_path / "compare-ditreward-hpsv3.html"
    page = Page(out.read_text(encoding="utf-8"))
    assert "Which trains the better model: dit_reward or hpsv3?" in page.text
    assert "One seed cannot say whether that is the arm or the seed." in page.text
    assert "Read this first" not in page.text


def test_runs_of_one_reward_are_named_by_their_folders(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, replace(DITREWARD, name=name)) for name in ("one", "two", "three")]
    text = Page(write_comparison(runs, tmp_path / "page.html").read_text()).text
    assert "Which trains the better model: one or two or three?" in text


def test_a_run_is_not_compared_with_itself(tmp_path: Path) -> None:
    run = write_run(tmp_path, FakeRun(steps=4, every=2))
    with pytest.raises(ConfigError, match="two different runs"):
        write_comparison([run, run])
