"""What an experiment is said to show: settled, open, over-optimised, worth keeping; from numbers that are known."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from experiment_fixture import DITREWARD, HPSV3, measure, noisy_curves, write_experiment_folder

from flowrl.config import RewardSpec, RewardsSection
from flowrl.matched.comparison import Findings, findings
from flowrl.matched.measures import Measure
from flowrl.matched.page import write_experiment_report
from flowrl.matched.reading import read_experiment_folder
from flowrl.matched.verdict import verdict
from flowrl.matrix.deciding import optimises

_ARMS = {"ditreward": DITREWARD, "hpsv3": HPSV3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment of two arms and three seeds."""
    return write_experiment_folder(tmp_path_factory.mktemp("experiment"), _ARMS)


def found_of(folder: Path, *measures: Measure) -> Findings:
    """What measures of known values come to, with the record of a folder."""
    return findings(read_experiment_folder(folder), measures)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_difference_that_holds_over_prompts_and_seeds_is_settled(folder: Path, swapped: bool) -> None:
    curves = [(0.5, 0.55, 0.6), (0.5, 0.5, 0.5)]
    said = verdict(found_of(folder, measure(noisy_curves(*(reversed(curves) if swapped else curves), noise=0.001))))
    winner, loser = ("hpsv3", "ditreward") if swapped else ("ditreward", "hpsv3")
    assert said.outcome == "settled"
    numbers = re.fullmatch(
        rf"By the oracle, {winner} trains the better model: (\S+) against (\S+) of {loser} after 20 steps\.",
        said.headline.text,
    )
    assert numbers is not None
    assert [float(number) for number in numbers.groups()] == pytest.approx([0.6, 0.5], abs=1e-3)
    difference = re.match(r"ditreward minus hpsv3: (\S+) \[", said.support[0].text)
    assert difference is not None
    assert float(difference[1].replace("\u2212", "-")) == pytest.approx(-0.1 if swapped else 0.1, abs=1e-3)
    assert said.support[1].text == (
        f"Of 2 matched checkpoints ditreward is ahead at {0 if swapped else 2}, clearly at {0 if swapped else 2}; "
        f"hpsv3 is ahead at {2 if swapped else 0}, clearly at {2 if swapped else 0}."
    )


def test_seeds_that_disagree_leave_the_question_open(folder: Path) -> None:
    values = noisy_curves((0.5, 0.6), (0.5, 0.5))
    values[0, :, 1] += np.array([-0.12, 0.0, 0.12])[:, None]
    said = verdict(found_of(folder, measure(values)))
    assert said.outcome == "these models"
    assert said.headline.text.endswith("But the 3 seeds differ so much that other seeds may say otherwise.")


def test_equal_arms_are_called_level(folder: Path) -> None:
    said = verdict(found_of(folder, measure(noisy_curves((0.5, 0.6), (0.5, 0.6)))))
    assert said.outcome == "open"
    assert "no difference is found after 10 steps" in said.headline.text


def test_an_advantage_of_arms_that_all_fell_is_told_with_that(folder: Path) -> None:
    said = verdict(found_of(folder, measure(noisy_curves((0.5, 0.4), (0.5, 0.3)))))
    assert said.headline.text.endswith("after 10 steps, though all fell.")
    assert "By the oracle no checkpoint of ditreward is better than the base model." in said.support[-1].text


def test_what_an_arm_was_trained_on_never_decides(folder: Path) -> None:
    trained = measure(noisy_curves((0.5, 0.9), (0.5, 0.5)), trained_by=("ditreward",))
    said = verdict(found_of(folder, trained))
    assert said.outcome == "undecided"
    assert f"flowrl judge {folder}" in said.headline.text


def test_over_optimisation_is_told_with_its_step(folder: Path) -> None:
    trained = measure(noisy_curves((0, 0, 0, 0), (0, 1, 2, 3)), name="hpsv3", trained_by=("hpsv3",))
    watched = measure(noisy_curves((0.5, 0.5, 0.5, 0.5), (0.5, 0.6, 0.5, 0.4)))
    said = verdict(found_of(folder, trained, watched))
    bad = [sentence.text for sentence in said.support if sentence.tone == "bad"]
    assert len(bad) == 1
    assert bad[0].startswith(
        "Over-optimisation in hpsv3: from step 20 on the oracle is clearly below its best (step 10), "
        "at the end by \u22120.19"
    )
    assert bad[0].endswith(" and below where it started, while hpsv3 has risen.")


def test_in_a_single_run_a_fall_is_not_called_over_optimisation(folder: Path) -> None:
    trained = measure(noisy_curves((0, 0, 0, 0), (0, 1, 2, 3), seeds=1), name="hpsv3", trained_by=("hpsv3",))
    watched = measure(noisy_curves((0.5, 0.5, 0.5, 0.5), (0.5, 0.6, 0.5, 0.4), seeds=1))
    said = verdict(found_of(folder, trained, watched))
    assert not any(sentence.tone == "bad" for sentence in said.support)
    assert any(sentence.text.startswith("In the one run of hpsv3 from step 20 on") for sentence in said.support)


def test_diversity_that_falls_is_told_and_is_no_over_optimisation(folder: Path) -> None:
    trained = measure(noisy_curves((0, 0, 0, 0), (0, 1, 2, 3)), name="hpsv3", trained_by=("hpsv3",))
    diversity = measure(noisy_curves((0.5, 0.5, 0.5, 0.5), (0.5, 0.4, 0.3, 0.2)), name="diversity")
    found = found_of(folder, trained, replace(diversity, source="diversity"))
    assert found.turnings == ()
    said = [sentence.text for sentence in verdict(found).support]
    assert any(
        re.match("Images of one prompt have become more alike: in hpsv3 by \u22120.(29|3)", text) for text in said
    )


def test_a_reward_with_a_negative_weight_rises_where_it_falls(folder: Path) -> None:
    record = read_experiment_folder(folder)
    for run in record.arms[1].runs.values():
        assert run.config is not None
        run.config.rewards.train[0].weight = -1.0
    watched = measure(noisy_curves((0.5, 0.5, 0.5, 0.5), (0.5, 0.6, 0.5, 0.4)))
    for curve, expected in (((0, 1, 2, 3), 0), ((0, -1, -2, -3), 1)):
        trained = measure(noisy_curves((0, 0, 0, 0), curve), name="hpsv3", trained_by=("hpsv3",))
        found = findings(record, [trained, watched]).turnings
        assert [one.trained for one in found] == ["less hpsv3"] * expected


def test_of_three_arms_the_best_is_held_against_each_other_one(tmp_path: Path) -> None:
    folder = write_experiment_folder(tmp_path, _ARMS | {"third": DITREWARD}, seeds=(0, 1))
    arms = ("ditreward", "hpsv3", "third")
    values = noisy_curves((0.5, 0.63), (0.5, 0.48), (0.5, 0.85))
    found = found_of(folder, measure(values, arms=arms))
    said = verdict(found)
    assert said.outcome == "settled"
    pattern = r"By the oracle, third trains the better model: 0\.8\d+ against 0\.6\d+ of ditreward and 0\.4\d+ of hpsv3"
    assert re.match(pattern, said.headline.text)
    assert [one.names for one in found.comparisons] == [arms[:2], arms[::2], arms[1:]]
    values[2, :, 1] += values[0, :, 1].mean() - values[2, :, 1].mean()  # now as good as the first, not better
    assert verdict(found_of(folder, measure(values, arms=arms))).outcome == "open"
    page = write_experiment_report(folder)
    figures = {path.name for path in (page.parent / "report" / "figures").glob("oracle-*difference.svg")}
    assert {"oracle-ditreward-hpsv3-difference.svg", "oracle-hpsv3-third-difference.svg"} <= figures


@pytest.mark.parametrize(
    ("train", "measure_name"),
    [
        ({"name": "oracle", "label": "mine"}, "oracle"),
        ({"name": "oracle_shape"}, "oracle"),
        ({"name": "oracle"}, "oracle_shape"),
    ],
)
def test_what_is_trained_on_under_another_label_decides_nothing(train: dict[str, str], measure_name: str) -> None:
    rewards = RewardsSection(train=[RewardSpec(**train)], watch=[RewardSpec(name=measure_name)])
    assert optimises(rewards, measure_name)
    assert not optimises(replace(rewards, train=[RewardSpec(name="dit_reward")]), measure_name)
