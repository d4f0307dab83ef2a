"""Every held-out score of an experiment, laid out so that what is compared lies beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flowrl.judge.results import JudgedLine
from flowrl.matched.record import MatchedRecord
from flowrl.report.evaluation_record import DIVERSITY, means_by_prompt
from flowrl.report.run_record import RunRecord, part_of

JUDGE = "judge_"  # begins the names of what a judge scored
_OVERALL = f"{JUDGE}overall"
_ORACLE = "oracle"
_DECIDE = (_OVERALL, _ORACLE)  # where the experiment does not say

Scores = Mapping[int, Mapping[str, float]]  # step -> prompt -> mean over the prompt's samples


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One measure of every arm, with the seeds, at the steps and on the prompts that all of them have.

    Example: two arms with 3 seeds, evaluated 9 times on 96 prompts, have values [2, 3, 9, 96].
    """

    name: str
    trained_by: tuple[str, ...]  # arms
    part_of: str | None  # the measure that it belongs to
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: tuple[int, ...]
    prompts: tuple[str, ...]
    dropped: int  # prompts without a finite score somewhere
    values: np.ndarray  # [arms, seeds, steps, prompts] float64, the mean over a prompt's samples

    @property
    def title(self) -> str:
        """As a reader knows it: "judge: overall", "oracle: shape"."""
        if self.name.startswith(JUDGE):
            return f"judge: {self.name.removeprefix(JUDGE)}"
        return f"{self.part_of}: {self.name.removeprefix(f'{self.part_of}_')}" if self.part_of else self.name

    @property
    def spoken(self) -> str:
        """In a sentence: "the judge (overall)", "the oracle", "hpsv3"."""
        if self.name.startswith(JUDGE):
            return f"the judge ({self.name.removeprefix(JUDGE)})"
        return "the oracle" if self.name == _ORACLE else self.title

    def mean(self, arm: int, step: int) -> float:
        """Over seeds and prompts, at a place among the steps."""
        return float(self.values[arm, :, step].mean())


def measures_of(record: MatchedRecord) -> list[Measure]:
    """What all runs were measured by: trained rewards, then what a judge said, then watched ones, then diversity."""
    runs = [[arm.runs[seed] for seed in record.seeds] for arm in record.arms]
    scores = {id(run): _all_scores(record, run) for one in runs for run in one}
    shared = [name for name in _ordered(record) if all(name in found for found in scores.values())]
    found = []
    for name in shared:
        laid = [[scores[id(run)][name] for run in one] for one in runs]
        measure = _measure(record, name, laid, shared)
        if measure is not None:
            found.append(measure)
    return found


def deciding(record: MatchedRecord, measures: Sequence[Measure]) -> Measure | None:
    """The measure that decides: the first of those named that there is; never one that an arm was trained on."""
    names = record.judged_by or _DECIDE
    known = {measure.name: measure for measure in measures if not measure.trained_by}
    return next((known[name] for name in names if name in known), None)


def _ordered(record: MatchedRecord) -> list[str]:
    trained = [name for arm in record.arms for name in arm.trained_rewards]
    judged = list(dict.fromkeys(f"{JUDGE}{name}" for line in record.judged for name in line.scores or ()))
    judged.sort(key=lambda name: name != _OVERALL)
    watched = [name for run in record.runs for name in run.measures]
    return list(dict.fromkeys([*trained, *judged, *watched, DIVERSITY]))


def _measure(
    record: MatchedRecord, name: str, laid: Sequence[Sequence[Scores]], shared: Sequence[str]
) -> Measure | None:
    flat = [scores for one in laid for scores in one]
    steps = sorted(set.intersection(*(set(scores) for scores in flat)))
    if not steps:
        return None
    tables = [scores[step] for scores in flat for step in steps]
    everywhere = set.intersection(*(set(table) for table in tables))
    prompts = [prompt for prompt in tables[0] if prompt in everywhere]
    if not prompts:
        return None
    values = [[[[scores[step][prompt] for prompt in prompts] for step in steps] for scores in one] for one in laid]
    if name.startswith(JUDGE):
        whole = None if name == _OVERALL else _OVERALL
    else:
        whole = part_of(name, list(shared))
    return Measure(
        name=name,
        trained_by=record.trained_by(name),
        part_of=whole,
        arms=tuple(arm.name for arm in record.arms),
        seeds=record.seeds,
        steps=tuple(steps),
        prompts=tuple(prompts),
        dropped=len(set.union(*(set(table) for table in tables))) - len(prompts),
        values=np.array(values, dtype=np.float64),
    )


def _all_scores(record: MatchedRecord, run: RunRecord) -> dict[str, dict[int, Mapping[str, float]]]:
    """The scores of a run: measure -> step -> prompt -> mean over its samples."""
    found: dict[str, dict[int, Mapping[str, float]]] = {}
    for evaluation in run.evaluations:
        for name, means in evaluation.means.items():
            found.setdefault(name, {})[evaluation.step] = means
    by_step: dict[int, list[JudgedLine]] = {}
    for line in record.judged:
        if line.run == run.directory.name and line.step is not None and line.scores is not None:
            by_step.setdefault(line.step, []).append(line)
    for step, lines in by_step.items():
        for name in lines[0].scores or ():
            rows = [[line.scores[name]] for line in lines if line.scores is not None]
            means = means_by_prompt([line.prompt for line in lines], rows)
            found.setdefault(f"{JUDGE}{name}", {})[step] = means
    return found
