"""What speaks against taking an experiment at face value."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from flowrl.config import ConfigError, diff
from flowrl.matched.record import MatchedRecord
from flowrl.matrix.experiment import is_within, undeclared
from flowrl.matrix.manifest import Element
from flowrl.report.run_record import RunRecord
from flowrl.report.verdict import violations
from flowrl.report.wording import listed

_OF_THE_ARM = ("run.name", "run.seed")


def check_is_sealed(run: RunRecord, element: Element, differ: Sequence[str]) -> None:
    """Raise ConfigError where a run is not that of its line in the manifest, in what makes the arm or the seed.

    Its folder was then changed for another, and the answer would be that of other arms. What else differs is told on
    the page, as it is between arms.
    """
    sealed = element.load()
    if run.config is None:
        return  # told on the page
    keys = [key for key in diff(sealed, run.config) if is_within(key, (*differ, *_OF_THE_ARM))]
    if keys:
        raise ConfigError(
            f"{run.directory}: is not the run of this name in the experiment, it differs from {element.config} in "
            f"{', '.join(keys)}; put the right folder there"
        )


def checked(record: MatchedRecord, declared: Sequence[str]) -> MatchedRecord:
    """The record with what speaks against taking it at face value."""
    found = list(record.problems)
    for seed in record.seeds:
        first, *others = (arm.runs[seed] for arm in record.arms)
        for other in others:
            found += [f"{text} (seed {seed})" if len(record.seeds) > 1 else text
                      for text in _mismatches(first, other, declared)]  # fmt: skip
    for run in record.runs:
        found += _unlike_metrics(run)
        found += [f"In {run.directory.name}: {text}" for text in violations(run)]
    return dataclasses.replace(record, problems=tuple(dict.fromkeys(found)))


def _unlike_metrics(run: RunRecord) -> list[str]:
    """Where the scores that a run kept are not those that it logged."""
    found = []
    logged = {int(row["step"]): row for row in run.metrics if any(key.startswith("eval/") for key in row)}
    kept = {one.step: one for one in run.evaluations}
    for step in sorted(logged.keys() - kept.keys()):
        found.append(f"{run.directory.name} was evaluated at step {step}, but its scores are not there.")
    for step, one in kept.items():
        for name, rows in one.scores.items():
            scores = [score for row in rows for score in row if score is not None]
            mean = logged.get(step, {}).get(f"eval/{name}/mean")
            if mean is None or not scores:
                continue
            if not math.isclose(sum(scores) / len(scores), mean, rel_tol=1e-3, abs_tol=1e-4):
                where = f"{run.directory.name} kept at step {step}"
                found.append(f"The scores of {name} that {where} are not those that it logged.")
    return found


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
