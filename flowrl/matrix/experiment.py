"""An experiment as a YAML file describes it, and the configurations of its runs.

Arms are matched: they differ in the keys that the file declares and in nothing else, so that a difference between their
results has one cause.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from omegaconf import MISSING

from flowrl.base.config_file import read_config
from flowrl.base.config_tree import all_keys, did_you_mean, require
from flowrl.config import ConfigError, RunConfig, diff, load
from flowrl.matrix.deciding import optimises
from flowrl.registry import BUILT_IN

_OWN = ("run.name", "run.dir", "run.seed")  # keys that the experiment itself gives each run
_PLACES = ("run.name", "run.dir", "run.overwrite")  # in which any two runs may differ
_LONGEST_VALUE = 60  # characters of a value in a message
_NAME = re.compile(r"[a-z0-9][a-z0-9_.]*")


@dataclass
class ArmSection:
    """What an arm is trained with."""

    config: str = ""  # the YAML file of a run; empty: the base of the experiment
    overrides: list[str] = field(default_factory=list)  # key=value, such as rewards.train.0.weight=2


@dataclass
class Experiment:
    """A question, and the runs that answer it: each arm with each seed.

    Example: `experiments/matched/rewards.yaml`
    """

    question: str = MISSING
    base: str = MISSING  # the YAML file of a run, such as configs/${profile}/ditreward.yaml
    profile: str = "pocket"  # for base and arms to refer to
    arms: dict[str, ArmSection] = MISSING
    differ: list[str] = MISSING  # keys or sections in which arms may differ
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    overrides: list[str] = field(default_factory=list)  # key=value, of all runs
    # Measures that decide, the first that all runs have: names of rewards as logged under eval/, or judge_DIMENSION,
    # such as judge_overall; empty: oracle, else judge_overall.
    decided_by: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of an experiment."""

    arm: str
    seed: int
    config: RunConfig

    @property
    def name(self) -> str:
        """Such as "hpsv3-0"."""
        return f"{self.arm}-{self.seed}"


def read_experiment(path: Path, overrides: list[str]) -> Experiment:
    """The experiment of a file, with other values than its own if any are given, such as "profile=sd35-large".

    Raises ConfigError.
    """
    return read_config(Experiment, path, overrides, check=_check)


def with_overrides(experiment: Experiment, overrides: list[str]) -> Experiment:
    """The same experiment with further `key=value` of all runs, which go before those of the file.

    They become the last ones of each arm: where an arm sets the same key, no other place would go before it. Raises
    ConfigError for a key that the experiment itself gives each run.
    """
    arms = {name: replace(arm, overrides=[*arm.overrides, *overrides]) for name, arm in experiment.arms.items()}
    changed = replace(experiment, arms=arms)
    _check(changed)
    return changed


def runs_of(experiment: Experiment, folder: Path) -> list[Run]:
    """The runs in `folder`, those of a seed next to each other.

    Raises ConfigError when a configuration cannot be run, when two arms differ in a key that is not declared, or when
    an arm is trained on a measure that is to decide.
    """
    runs = []
    for seed in experiment.seeds:
        for name, arm in experiment.arms.items():
            own = [f"run.seed={seed}", f"run.name={name}-{seed}", f"run.dir={folder / f'{name}-{seed}'}"]
            every = [*experiment.overrides, *arm.overrides, *own]
            runs.append(Run(arm=name, seed=seed, config=load(arm.config or experiment.base, every)))
    first = runs[0]
    for run in runs[: len(experiment.arms)]:
        if run is not first:
            _check_matched(first, run, experiment.differ)
    _check_decided(runs[: len(experiment.arms)], experiment.decided_by)
    return runs


def _check(experiment: Experiment) -> None:
    require(len(experiment.arms) > 1, f"arms must be two or more, to be compared, got {', '.join(experiment.arms)}")
    for name in experiment.arms:
        rule = "must be of small letters, digits, _ and ., as it names folders"
        require(_NAME.fullmatch(name) is not None, f"arms: the name of an arm {rule}, got {name!r}")
    seeds = experiment.seeds
    require(
        bool(seeds) and len(set(seeds)) == len(seeds), f"seeds must be different numbers, at least one, got {seeds}"
    )
    given = [one.partition("=")[0] for one in experiment.overrides]
    given += [one.partition("=")[0] for arm in experiment.arms.values() for one in arm.overrides]
    taken = sorted({key for key in given if key in _OWN})
    require(
        not taken, f"overrides: {', '.join(taken)} is for the experiment to set; use seeds, or --out for the folder"
    )
    known = list(all_keys(RunConfig))
    known += sorted({key.partition(".")[0] for key in known})
    for key in experiment.differ:
        require(key in known, f"differ: {key!r} is no key of a run; {did_you_mean(key, known)}")
    measures = experiment.decided_by
    require(
        all(measures) and len(set(measures)) == len(measures),
        f"decided_by must name each measure once, such as judge_overall or oracle, got {measures}",
    )


def undeclared(one: RunConfig, other: RunConfig, declared: Sequence[str]) -> dict[str, tuple[object, object]]:
    """The keys in which two runs of a seed differ and may not, with both values."""
    return {
        key: values for key, values in diff(one, other).items() if key not in _PLACES and not is_within(key, declared)
    }


def is_within(key: str, names: Sequence[str]) -> bool:
    """Whether a key is one of these, or in a section of them."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _check_matched(one: Run, other: Run, declared: list[str]) -> None:
    found = undeclared(one.config, other.config, declared)
    if found:
        values = "; ".join(f"{key}: {_short(first)} and {_short(second)}" for key, (first, second) in found.items())
        raise ConfigError(
            f"the arms {one.arm} and {other.arm} differ in what is not declared: {', '.join(found)} ({values}). Make "
            "them equal, or add the key to differ: if it is meant"
        )
    if not any(key not in _OWN for key in diff(one.config, other.config)):
        raise ConfigError(
            f"the arms {one.arm} and {other.arm} are the same configuration, so that there is nothing to compare; give "
            "one another config or overrides"
        )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def _check_decided(runs: Sequence[Run], measures: list[str]) -> None:
    specs = [spec for run in runs for spec in (*run.config.rewards.train, *run.config.rewards.watch)]
    known = sorted({*(spec.metric_name for spec in specs), *BUILT_IN["reward"], "judge_overall"})
    for measure in measures:
        require(
            measure in known or measure.startswith("judge_"),
            f"decided_by: {measure!r} is no reward of the runs, and of no judge; {did_you_mean(measure, known)}",
        )
        for run in runs:
            require(
                not optimises(run.config.rewards, measure),
                f"decided_by: {measure} cannot decide, for the arm {run.arm} is trained on it, or on a part of it; "
                "name a measure that no arm is trained on, such as judge_overall",
            )
