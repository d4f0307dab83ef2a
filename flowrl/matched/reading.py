"""Reads an experiment from its folder, or makes one of loose runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from flowrl.base.errors import UserError
from flowrl.config import ConfigError
from flowrl.judge.results import RESULTS, JudgedLine, read_results
from flowrl.matched.checks import check_is_sealed, checked
from flowrl.matched.record import Arm, MatchedRecord
from flowrl.matrix.experiment import Experiment, read_experiment
from flowrl.matrix.folder import EXPERIMENT_FILE, JUDGED
from flowrl.matrix.manifest import CONFIGS, MANIFEST, Element, read_manifest
from flowrl.matrix.progress import begun
from flowrl.report.run_record import RunRecord, read_run
from flowrl.report.wording import listed

_REWARDS = ("rewards.train", "rewards.watch")


def read_experiment_folder(folder: Path) -> MatchedRecord:
    """Read the folder of an experiment, finished or not.

    Raises ConfigError where it is none, or where no seed has begun in all arms.
    """
    elements = read_manifest(folder / MANIFEST)
    experiment = _experiment(folder, elements)
    # A folder may have been moved since: its runs are inside, whatever the manifest says of where that was.
    places = {(one.arm, one.seed): folder / one.dir.name for one in elements}
    there = {key: read_run(place) for key, place in places.items() if begun(place)}
    for one in elements:
        if (run := there.get((one.arm, one.seed))) is not None:
            check_is_sealed(run, replace(one, config=folder / CONFIGS / one.config.name), experiment.differ)
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
    record = MatchedRecord(
        folder=folder,
        question=experiment.question,
        decided_by=tuple(experiment.decided_by),
        arms=arms,
        judge=judge,
        judged=judged,
        problems=tuple(problems),
        source=(folder / EXPERIMENT_FILE).read_text(encoding="utf-8"),
    )
    return checked(record, tuple(experiment.differ))


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
    return checked(record, _REWARDS)


def _experiment(folder: Path, elements: Sequence[Element]) -> Experiment:
    if (folder / EXPERIMENT_FILE).is_file():
        return read_experiment(folder / EXPERIMENT_FILE, [])
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
