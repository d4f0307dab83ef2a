"""An experiment as its folder holds it: the arms, their runs by seed, and what judges said of their images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowrl.base.config_file import read_config
from flowrl.base.errors import UserError
from flowrl.config import ConfigError
from flowrl.judge.results import RESULTS, JudgedLine, read_results
from flowrl.matrix.experiment import Experiment, undeclared
from flowrl.matrix.folder import EXPERIMENT_FILE, JUDGED
from flowrl.matrix.manifest import MANIFEST, Element, read_manifest
from flowrl.matrix.progress import begun
from flowrl.report.run_record import RunRecord, read_run
from flowrl.report.verdict import violations
from flowrl.report.wording import listed

_REWARDS = ("rewards.train", "rewards.watch")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """The runs that were trained alike but for their seeds.

    Example: ``Arm(name="hpsv3", runs={0: record, 1: another})``
    """

    name: str
    runs: Mapping[int, RunRecord]  # by seed

    @property
    def first(self) -> RunRecord:
        """The run of the lowest seed, for what all of them share."""
        return self.runs[min(self.runs)]

    @property
    def trained_rewards(self) -> tuple[str, ...]:
        """The measures that it was trained on, heaviest first."""
        return tuple(self.first.trained_rewards)


@dataclass(frozen=True, kw_only=True)
class MatchedRecord:
    """What is compared: arms with the same seeds.

    Runs that the others have no counterpart for are left out, and named in `problems`.
    """

    folder: Path
    question: str
    decided_by: tuple[str, ...]  # measures that may decide, the first that there is
    arms: tuple[Arm, ...]  # two or more
    judge: str  # who gave `judged`; "" for nobody
    judged: tuple[JudgedLine, ...]
    problems: tuple[str, ...]
    source: str = ""  # the experiment's own file, which makes the same runs again; "" for runs that have none

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those of every arm, in order."""
        return tuple(sorted(self.arms[0].runs))

    @property
    def runs(self) -> list[RunRecord]:
        """All that are compared, seed by seed."""
        return [arm.runs[seed] for seed in self.seeds for arm in self.arms]

    def trained_by(self, measure: str) -> tuple[str, ...]:
        """The arms that were trained on a measure."""
        return tuple(arm.name for arm in self.arms if measure in arm.trained_rewards)


def read_experiment_folder(folder: Path) -> MatchedRecord:
    """Read the folder of an experiment, finished or not.

    Raises ConfigError where it is none, or where no seed has begun in all arms.
    """
    elements = read_manifest(folder / MANIFEST)
    experiment = _experiment(folder, elements)
    # A folder may have been moved since: its runs are inside, whatever the manifest says of where that was.
    places = {(one.arm, one.seed): folder / one.dir.name for one in elements}
    there = {key: read_run(place) for key, place in places.items() if begun(place)}
    problems = [f"{arm}-{seed} has not begun" for arm, seed in places if (arm, seed) not in there]
    names = [
        name for name in experiment.arms if any(arm == name and _evaluated(run) for (arm, _), run in there.items())
    ]
    gone = [name for name in experiment.arms if name not in names]
    if gone:
        problems.append(f"Of {listed(gone)} no run was evaluated after training, so there is nothing to compare with")
    seeds = _compared(names, experiment.seeds, there)
    if len(names) < 2 or not seeds:
        raise ConfigError(
            f"{folder}: there is no seed with which two of {', '.join(experiment.arms)} have been evaluated after "
            f"training; flowrl matrix {folder / EXPERIMENT_FILE} --run goes on with them"
        )
    left = [f"{arm}-{seed}" for (arm, seed) in there if seed not in seeds]
    if left:
        verb = "is" if len(left) == 1 else "are"
        problems.append(f"{listed(left)} {verb} left out: of seeds with which not every arm is complete")
    arms = tuple(Arm(name=name, runs={seed: there[name, seed] for seed in seeds}) for name in names)
    judge, judged = _judged(folder, problems)
    return _checked(
        MatchedRecord(
            folder=folder,
            question=experiment.question,
            decided_by=tuple(experiment.decided_by),
            arms=arms,
            judge=judge,
            judged=judged,
            problems=tuple(problems),
            source=(folder / EXPERIMENT_FILE).read_text(encoding="utf-8"),
        ),
        tuple(experiment.differ),
    )


def loose_runs(runs: Sequence[Path]) -> MatchedRecord:
    """Runs that no experiment made, each an arm of its own; they should differ in their rewards alone.

    Raises ConfigError where one is no run, or one is given twice.
    """
    if len({run.resolve() for run in runs}) < max(len(runs), 2):
        raise ConfigError(f"a comparison needs two different runs, got {', '.join(map(str, runs))}")
    records = [read_run(run) for run in runs]
    names = [" + ".join(record.trained_rewards) for record in records]
    if len(set(names)) < len(names) or not all(names):
        names = [record.directory.name for record in records]
    if len(set(names)) < len(names):
        names = [str(record.directory) for record in records]
    seeds = {record.config.run.seed for record in records if record.config is not None}
    seed = seeds.pop() if len(seeds) == 1 else 0  # others are told as a difference that was not declared
    arms = tuple(Arm(name=name, runs={seed: record}) for name, record in zip(names, records, strict=True))
    record = MatchedRecord(
        folder=runs[-1].parent,
        question=f"Which trains the better model: {' or '.join(names)}?",
        decided_by=(),
        arms=arms,
        judge="",
        judged=(),
        problems=(),
    )
    return _checked(record, _REWARDS)


def _experiment(folder: Path, elements: Sequence[Element]) -> Experiment:
    if (folder / EXPERIMENT_FILE).is_file():
        return read_config(Experiment, folder / EXPERIMENT_FILE, [])
    raise ConfigError(
        f"{folder}: has no {EXPERIMENT_FILE} beside its {MANIFEST} of {len(elements)} runs; expand the experiment "
        f"again: flowrl matrix EXPERIMENT --out {folder}"
    )


def _compared(arms: Sequence[str], seeds: Sequence[int], there: Mapping[tuple[str, int], RunRecord]) -> list[int]:
    """The seeds with which every arm is complete or, while there are none, was evaluated after training."""
    for fits in (_complete, _evaluated):
        found = [
            seed for seed in seeds if all((run := there.get((arm, seed))) is not None and fits(run) for arm in arms)
        ]
        if found:
            return found
    return []


def _complete(run: RunRecord) -> bool:
    return _evaluated(run) and run.planned_steps is not None and run.last_step >= run.planned_steps


def _evaluated(run: RunRecord) -> bool:
    return any(row["step"] > 0 and any(key.startswith("eval/") for key in row) for row in run.metrics)


def _judged(folder: Path, problems: list[str]) -> tuple[str, tuple[JudgedLine, ...]]:
    if not (folder / JUDGED / RESULTS).is_file():
        return "", ()
    try:
        return read_results(folder / JUDGED)
    except UserError as error:
        problems.append(f"What was judged cannot be read: {error}")
        return "", ()


def _checked(record: MatchedRecord, declared: Sequence[str]) -> MatchedRecord:
    """The record with what speaks against taking it at face value."""
    found = list(record.problems)
    for seed in record.seeds:
        first, *others = (arm.runs[seed] for arm in record.arms)
        for other in others:
            found += [f"{text} (seed {seed})" if len(record.seeds) > 1 else text
                      for text in _mismatches(first, other, declared)]  # fmt: skip
    for run in record.runs:
        found += [f"In {run.directory.name}: {text}" for text in violations(run)]
    return dataclasses.replace(record, problems=tuple(dict.fromkeys(found)))


def _mismatches(first: RunRecord, second: RunRecord, declared: Sequence[str]) -> list[str]:
    """Why two runs are not matched, in words; empty where they differ in what was declared alone."""
    found = []
    names = f"{first.directory.name} and {second.directory.name}"
    if first.config is None or second.config is None:
        found.append(f"The configurations of {names} cannot be compared: they may differ in more than was declared.")
    else:
        keys = list(undeclared(first.config, second.config, declared))
        if keys:
            found.append(
                f"{names} are not matched: they differ in {listed(keys)}, which is not declared. A difference in "
                "outcome may come from there."
            )
    starts = [next((one for one in run.evaluations if one.step == 0), None) for run in (first, second)]
    apart = []
    if (one := starts[0]) is not None and (other := starts[1]) is not None:
        apart = [name for name, rows in one.scores.items() if other.scores.get(name, rows) != rows]
    if apart:
        found.append(f"{names} do not start alike: their first evaluations differ in {listed(apart)}.")
    return found
