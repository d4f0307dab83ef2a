"""Every held-out score of an experiment, laid out so that what is compared lies beside each other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from flowrl.judge.results import JudgedLine
from flowrl.matched.record import MatchedRecord
from flowrl.matrix.deciding import optimises
from flowrl.registry import part_of
from flowrl.report.run_record import RunRecord

Source = Literal["reward", "judge", "diversity"]
DIVERSITY = "diversity"
JUDGE = "judge_"  # begins the names of what a judge scored; no reward may be called so
_OVERALL, _ORACLE = f"{JUDGE}overall", "oracle"
_DECIDE = (_ORACLE, _OVERALL)  # where the experiment does not say


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One measure of every arm, with the seeds, at the steps and on the prompts and samples that all of them have.

    Example: two arms with 3 seeds, evaluated 9 times on 96 prompts, have values [2, 3, 9, 96].
    """

    name: str
    source: Source = "reward"
    trained_by: tuple[str, ...] = ()  # arms
    part_of: str | None = None  # the measure that it belongs to
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: tuple[int, ...]  # rising; one or more
    prompts: tuple[str, ...]  # one or more
    dropped: int = 0  # prompts that are left out, because a run has no score of them
    missing: tuple[int, ...] = ()  # scores that each arm lacks; the same samples are left out in every run
    values: np.ndarray  # [arms, seeds, steps, prompts] float64, the mean over a prompt's samples

    @property
    def moves(self) -> bool:
        """Whether it was taken before training and after."""
        return self.steps[0] == 0 and len(self.steps) > 1

    @property
    def title(self) -> str:
        """As a reader knows it: "judge: overall", "oracle: shape"."""
        if self.source == "judge":
            return f"judge: {self.name.removeprefix(JUDGE)}"
        return f"{self.part_of}: {self.name.removeprefix(f'{self.part_of}_')}" if self.part_of else self.name

    @property
    def spoken(self) -> str:
        """In a sentence: "the judge (overall)", "the oracle", "the oracle's shape", "hpsv3"."""
        if self.source == "judge":
            return f"the judge ({self.name.removeprefix(JUDGE)})"
        if self.part_of == _ORACLE:
            return f"the oracle's {self.name.removeprefix(f'{_ORACLE}_')}"
        return "the oracle" if self.name == _ORACLE else self.title

    def mean(self, arm: int, step: int) -> float:
        """Over seeds and prompts, at a place among the steps."""
        return float(self.values[arm, :, step].mean())


def measures_of(record: MatchedRecord) -> list[Measure]:
    """What all runs were measured by: trained rewards, then what a judge said, then watched ones, then diversity."""
    found = [[_samples(record, arm.runs[seed]) for seed in record.seeds] for arm in record.arms]
    shared = [name for name in _ordered(record) if all(name in run for arm in found for run in arm)]
    laid = ((name, [[run[name] for run in arm] for arm in found]) for name in shared)
    return [measure for name, runs in laid if (measure := _measure(record, name, runs, shared)) is not None]


def deciding(record: MatchedRecord, measures: Sequence[Measure]) -> Measure | None:
    """The measure that decides: the first of those named that was taken at the last step that any was taken at.

    Never what an arm was trained on, nor what was taken before training alone.
    """
    last = max((one.steps[-1] for one in measures), default=0)
    names = record.decided_by or _DECIDE
    configs = [arm.first.config for arm in record.arms]
    known = {
        measure.name: measure
        for measure in measures
        if measure.steps[-1] == last > 0
        and not measure.trained_by
        and not any(config is not None and optimises(config.rewards, measure.name) for config in configs)
    }
    return next((known[name] for name in names if name in known), None)


@dataclass(frozen=True, kw_only=True)
class _Samples:
    """The scores of one measure in one run."""

    source: Source
    at: dict[int, dict[str, list[float]]] = field(default_factory=dict)  # step -> prompt -> samples; NaN where missing

    def add(self, step: int, prompts: Sequence[str], rows: Sequence[Sequence[float | None]]) -> None:
        table = self.at.setdefault(step, {})
        for prompt, row in zip(prompts, rows, strict=True):  # a prompt that comes twice has the samples of both
            table.setdefault(prompt, []).extend(math.nan if one is None else one for one in row)


def _samples(record: MatchedRecord, run: RunRecord) -> dict[str, _Samples]:
    """What a run was measured by, sample by sample."""
    found: dict[str, _Samples] = {}
    for evaluation in run.evaluations:
        for name, rows in evaluation.scores.items():
            found.setdefault(name, _Samples(source="reward")).add(evaluation.step, evaluation.prompts, rows)
        if evaluation.diversity is not None:
            rows = [[value] for value in evaluation.diversity]
            found.setdefault(DIVERSITY, _Samples(source="diversity")).add(evaluation.step, evaluation.prompts, rows)
    for line in _in_order(record.judged, run.directory.name):
        for name in _dimensions(record):
            score = None if line.scores is None else line.scores.get(name)
            found.setdefault(f"{JUDGE}{name}", _Samples(source="judge")).add(line.step, [line.prompt], [[score]])
    return found


def _in_order(lines: Sequence[JudgedLine], run: str) -> Iterator[JudgedLine]:
    """The lines of a run by step and cell, so that equal places have equal noise."""
    yield from sorted((line for line in lines if line.run == run), key=lambda line: (line.step, line.cell))


def _dimensions(record: MatchedRecord) -> list[str]:
    """What the judge scored, overall first."""
    names = dict.fromkeys(name for line in record.judged for name in line.scores or ())
    return sorted(names, key=lambda name: f"{JUDGE}{name}" != _OVERALL)


def _ordered(record: MatchedRecord) -> list[str]:
    trained = [name for arm in record.arms for name in arm.trained_rewards]
    judged = [f"{JUDGE}{name}" for name in _dimensions(record)]
    watched = [name for run in record.runs for name in run.measures]
    return list(dict.fromkeys([*trained, *judged, *watched, DIVERSITY]))


def _measure(
    record: MatchedRecord, name: str, runs: Sequence[Sequence[_Samples]], shared: Sequence[str]
) -> Measure | None:
    flat = [run for arm in runs for run in arm]
    steps = sorted(set.intersection(*(set(run.at) for run in flat)))
    if not steps:
        return None
    tables: list[Mapping[str, list[float]]] = [run.at[step] for run in flat for step in steps]
    columns, prompts, missing = [], [], np.zeros(len(flat) * len(steps), dtype=int)
    everywhere = set.intersection(*(set(table) for table in tables))
    for prompt in (prompt for prompt in tables[0] if prompt in everywhere):
        width = min(len(table[prompt]) for table in tables)
        scores = np.array([table[prompt][:width] for table in tables])
        missing += (~np.isfinite(scores)).sum(axis=1)
        whole = np.isfinite(scores).all(axis=0)  # a sample that one run has no score of is left out of all
        if whole.any():
            prompts.append(prompt)
            columns.append(scores[:, whole].mean(axis=1))
    if not prompts:
        return None
    shape = (len(runs), len(runs[0]), len(steps))
    source = flat[0].source
    return Measure(
        name=name,
        source=source,
        trained_by=record.trained_by(name),
        part_of=_whole(name, source, shared),
        arms=tuple(arm.name for arm in record.arms),
        seeds=record.seeds,
        steps=tuple(steps),
        prompts=tuple(prompts),
        dropped=len(set.union(*(set(table) for table in tables))) - len(prompts),
        missing=tuple(int(count) for count in missing.reshape(len(runs), -1).sum(axis=1)),
        values=np.stack(columns, axis=-1).reshape(*shape, len(prompts)),
    )


def _whole(name: str, source: Source, shared: Sequence[str]) -> str | None:
    if source == "judge":
        return None if name == _OVERALL else _OVERALL
    return part_of(name, shared)
