"""An experiment as its folder holds it: the arms, their runs by seed, and what judges said of their images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flowrl.judge.results import JudgedLine
from flowrl.report.run_record import RunRecord


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
