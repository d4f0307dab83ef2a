"""The held-out scores that a run kept, prompt by prompt."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

DIVERSITY = "diversity"


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord:
    """One evaluation; prompts without a finite score are left out.

    Example: ``EvaluationRecord(step=20, means={"oracle": {"a red circle on sand": 0.91}})``
    """

    step: int
    means: Mapping[str, Mapping[str, float]]  # measure -> prompt -> mean over its samples; diversity is one of them


def read_evaluations(folder: Path) -> tuple[list[EvaluationRecord], list[str]]:
    """All evaluations of a run's folder `evaluations`, by step, and what is wrong with those that cannot be read."""
    found, problems = [], []
    for path in sorted(folder.glob("step_*.json")):
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            columns = dict(kept["scores"])
            if DIVERSITY in kept:  # which older versions did not keep
                columns[DIVERSITY] = [[value] for value in kept[DIVERSITY]]
            means = {str(name): means_by_prompt(kept["prompts"], rows) for name, rows in columns.items()}
            found.append(EvaluationRecord(step=int(kept["step"]), means=means))
        except (OSError, ValueError, KeyError, TypeError) as error:
            problems.append(f"The scores in {path} cannot be read, so that step is not compared: {error}")
    return found, problems


def means_by_prompt(prompts: Sequence[str], rows: Sequence[Sequence[float | None]]) -> dict[str, float]:
    """The mean of each prompt's scores, of those that exist; a prompt that comes twice has the scores of both."""
    scores: dict[str, list[float]] = {}
    for prompt, row in zip(prompts, rows, strict=True):
        scores.setdefault(str(prompt), []).extend(one for one in row if one is not None and math.isfinite(one))
    return {prompt: math.fsum(row) / len(row) for prompt, row in scores.items() if row}
