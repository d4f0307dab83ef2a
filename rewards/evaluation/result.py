"""What an evaluation found, as it is written to `result.json`: every figure with its interval and its counts."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

from rewards.evaluation.accuracy import TieRule
from rewards.evaluation.bootstrap import Interval, PairedDifference


@dataclass(frozen=True, kw_only=True)
class Figure:
    """The accuracy of one reward under one protocol.

    Example: ``Figure(label="HPSv3", accuracy=0.769, interval=Interval(low=0.757, high=0.781), equal=0, tie_rule=None)``
    """

    label: str
    accuracy: float  # in [0, 1]; NaN when no pair is counted
    interval: Interval
    equal: int  # counted pairs whose two scores are exactly equal
    tie_rule: TieRule | None = None  # that validation pairs chose


@dataclass(frozen=True, kw_only=True)
class CategoryFigures:
    """The figures of all rewards on the pairs of one category."""

    category: str
    num_pairs: int
    figures: tuple[Figure, ...]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The accuracy of `first` minus that of `second`, on the same pairs."""

    first: str
    second: str
    paired: PairedDifference


@dataclass(frozen=True, kw_only=True)
class ProtocolResult:
    """All rewards under one protocol."""

    protocol: str
    definition: str
    source: str  # of the definition
    num_pairs: int  # counted
    num_prompts: int  # with a counted pair
    num_ties: int  # pairs that people tied, of those that every reward has scored
    ties: str  # what the protocol does with them
    figures: tuple[Figure, ...]  # in the order of the configuration
    by_category: tuple[CategoryFigures, ...]  # empty when there is one category alone
    differences: tuple[Difference, ...]


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """What of a benchmark was used."""

    num_comparisons: int
    num_pairs: int  # of all comparisons
    num_ties: int  # of these, pairs that people tied
    num_repeated: int  # pairs of all that stand there again with the same label; they are in the figures
    num_contradicted: int  # pairs of all that stand there again with another label; they are in the figures too
    num_comparable: int  # pairs whose images every reward has scored: those that are counted
    unscored: dict[str, int]  # label -> images that are in order but have no finite score by this reward
    num_bad_rows: int
    bad_rows: tuple[str, ...]  # the first of them
    num_bad_images: int
    bad_images: tuple[str, ...]
    skipped_rows: int


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult:
    """One benchmark; the first protocol is the one of the main table."""

    name: str
    test_set: str  # key of `rewards.evaluation.published.TEST_SETS`; empty for one that papers do not have
    coverage: Coverage
    protocols: tuple[ProtocolResult, ...]


@dataclass(frozen=True, kw_only=True)
class RewardDescription:
    """Which reward a label stands for."""

    label: str
    name: str
    options: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """A whole evaluation."""

    rewards: tuple[RewardDescription, ...]
    benchmarks: tuple[BenchmarkResult, ...]
    draws: int  # of the bootstrap
    seed: int

    def to_json(self) -> str:
        """Indented JSON; what is not a number is null."""
        return json.dumps(_plain(dataclasses.asdict(self)), indent=1, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
