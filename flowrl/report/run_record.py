"""What a run left behind, read back: whole, unfinished, or torn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flowrl.base.environment import Environment, read_environments
from flowrl.config import ConfigError, RunConfig, load
from flowrl.evaluation_record import EvaluationRecord, evaluation_files, read_evaluation
from flowrl.metrics import read_metrics
from flowrl.registry import part_of
from flowrl.samples import Sheet, read_sheet, sheet_steps


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run directory.

    Example: ``read_run(Path("runs/ditreward")).series("eval/oracle/mean")`` is ``[(0, 0.58), (20, 0.6)]``.
    """

    directory: Path
    name: str
    config: RunConfig | None  # None where another version wrote it
    config_text: str
    starts: list[Environment]  # the first start, then each resume
    metrics: list[dict[str, float]]
    evaluations: list[EvaluationRecord]
    problems: list[str]  # what could not be read, in words

    def series(self, key: str) -> list[tuple[int, float]]:
        """The values of one metric as (step, value), in order of steps."""
        return [(int(row["step"]), row[key]) for row in self.metrics if key in row]

    def keys(self) -> set[str]:
        """Every metric that was logged at least once."""
        return {key for row in self.metrics for key in row} - {"step"}

    @property
    def last_step(self) -> int:
        """The last step of which anything is known; 0 where nothing was trained."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    @property
    def planned_steps(self) -> int | None:
        """How many steps the run was to take."""
        return self.config.run.steps if self.config is not None else None

    @property
    def trained_rewards(self) -> list[str]:
        """The names of the rewards that the run was trained on, heaviest first."""
        if self.config is not None:
            return [spec.metric_name for spec in sorted(self.config.rewards.train, key=lambda spec: -spec.weight)]
        parts = [key.split("/") for key in sorted(self.keys())]
        return [part[1] for part in parts if part[0] == "reward" and part[-1] == "mean" and part[1] != "total"]

    @property
    def measures(self) -> list[str]:
        """What was evaluated: trained rewards, then watched ones in the order of the config, then the rest."""
        found = {key.split("/")[1] for key in self.keys() if key.startswith("eval/") and key.endswith("/mean")}
        found.discard("diversity")
        watched = [spec.metric_name for spec in self.config.rewards.watch] if self.config is not None else []
        first = [name for name in [*self.trained_rewards, *watched] if name in found]
        ordered: list[str] = []
        for name in [*first, *sorted(found - set(first), key=lambda name: (name.startswith("oracle"), name))]:
            if name not in ordered:
                parts = sorted(part for part in found if part_of(part, [name]) is not None and part not in first)
                ordered += [name, *parts]
        return list(dict.fromkeys(ordered))

    def sheets(self) -> list[Sheet]:
        """The first and the last readable sample sheet; one or none where there are no two."""
        folder = self.directory / "samples"
        steps = sheet_steps(folder)
        first = next((sheet for step in steps if (sheet := read_sheet(folder, step))), None)
        if first is None:
            return []
        later = (step for step in reversed(steps) if step > first.step)
        last = next((sheet for step in later if (sheet := read_sheet(folder, step))), None)
        return [first] if last is None else [first, last]


def read_run(directory: Path) -> RunRecord:
    """Read a run directory; raises ConfigError where it is none. Broken files inside become `problems`."""
    path = directory / "config.yaml"
    if not path.is_file():
        raise ConfigError(
            f"{directory} must be the directory of a run, but there is no {path}; give one like runs/NAME"
        )
    problems = []
    config: RunConfig | None = None
    try:
        config = load(path)
    except ConfigError as error:
        problems.append(f"The configuration cannot be read by this version: {error}")
    try:
        metrics = read_metrics(directory / "metrics.jsonl")
    except ValueError as error:
        metrics = []
        problems.append(f"The metrics cannot be read: {error}")
    evaluations, torn = _evaluations(directory / "evaluations", last=int(metrics[-1]["step"]) if metrics else -1)
    return RunRecord(
        directory=directory,
        name=config.run.name if config is not None else directory.resolve().name,
        config=config,
        config_text=path.read_text(encoding="utf-8", errors="replace"),
        starts=read_environments(directory / "env.json"),
        metrics=metrics,
        evaluations=evaluations,
        problems=problems + torn,
    )


def _evaluations(folder: Path, *, last: int) -> tuple[list[EvaluationRecord], list[str]]:
    """Those up to the last step that was logged, and what is wrong with others.

    A run that was killed and has resumed from before leaves some from after, which it will make again.
    """
    found, problems = [], []
    for path in evaluation_files(folder):
        try:
            found.append(read_evaluation(path))
        except ValueError as error:
            problems.append(f"Its scores are not compared at one step: {error}")
    return [one for one in found if one.step <= last], problems
