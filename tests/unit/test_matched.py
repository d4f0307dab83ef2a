"""The page about an experiment: what is compared, what it says, and the files beside it."""

from __future__ import annotations

import csv
import json
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
    assert "The judge is a-model, on 8 prompts." in page.text
    found = {one.name: one for one in measures_of(read_experiment_folder(folder))}
    assert found["judge_alignment"].part_of == "judge_overall"
    assert found["judge_overall"].steps == (0, 20)


def test_a_judge_who_saw_but_the_start_decides_nothing(tmp_path: Path) -> None:
    folder = write_experiment_folder(tmp_path, _ARMS, decided_by=("judge_overall", "oracle"))
    judged(folder, steps=(0,))
    text = Page(write_experiment_report(folder).read_text()).text
    assert "By the oracle, ditreward trains the better model" in text
    assert "judge_overall was to decide, but was not taken at step 20 in every run." in text
    results = folder / "judged" / "results.jsonl"
    results.write_text("".join(line + "\n" for line in results.read_text().splitlines() if "hpsv3-0" not in line))
    assert "What the judge said is not used" in Page(write_experiment_report(folder).read_text()).text


def test_what_is_no_judging_is_told(tmp_path: Path) -> None:
    folder = write_experiment_folder(tmp_path, _ARMS, seeds=(0,))
    judged(folder)
    (folder / "judged" / "summary.json").write_text("{}")
    assert [text.partition(":")[0] for text in read_experiment_folder(folder).problems] == [
        "What was judged cannot be read"
    ]


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
