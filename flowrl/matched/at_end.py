"""Every measure before training and at the end of each arm: the rows of the page's first table and of the Markdown."""

from __future__ import annotations

from dataclasses import dataclass

from flowrl.matched.comparison import Comparison, Findings, gain
from flowrl.matched.measures import Measure
from flowrl.matched.paired import Difference
from flowrl.matched.verdict import decimals_of
from flowrl.report.wording import fixed


@dataclass(frozen=True, kw_only=True)
class EndRow:
    """One measure; `after` has a score for each arm and, where it was measured before training, what was gained."""

    measure: Measure
    decimals: int
    before: str  # "" where it was not measured before training
    after: tuple[tuple[str, Difference | None], ...]
    pairs: tuple[Comparison, ...]  # of the first arm with each other one


def end_rows(found: Findings) -> list[EndRow]:
    """A row for each measure."""
    rows = []
    for measure in found.measures:
        pairs = tuple(pair for pair in found.of(measure) if pair.first == 0)
        decimals = max(decimals_of(pair.at[-1]) for pair in pairs)
        arms = range(len(measure.arms))
        rows.append(
            EndRow(
                measure=measure,
                decimals=decimals,
                before=fixed(measure.mean(0, 0), decimals) if measure.moves else "",
                after=tuple((fixed(measure.mean(arm, -1), decimals), gain(measure, arm)) for arm in arms),
                pairs=pairs,
            )
        )
    return rows


def last_step(found: Findings) -> int:
    """The step at which the answer is taken: the last of the measure that decides, else of any."""
    if found.decides is not None:
        return found.decides.steps[-1]
    return max((measure.steps[-1] for measure in found.measures), default=0)
