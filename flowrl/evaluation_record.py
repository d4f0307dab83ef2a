"""The scores of one held-out evaluation as a run keeps them: sample by sample, so that two of them can be paired."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from flowrl.base.atomic_file import write_atomically

Rows = Sequence[Sequence[float | None]]  # [prompts][samples]; None where there is no finite score


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord:
    """One evaluation. Samples at the same place have the same noise in every evaluation of the same settings.

    Example: ``EvaluationRecord(step=20, prompts=["a red circle"], scores={"oracle": [[0.91, 0.88]]}, diversity=[0.4])``
    """

    step: int
    prompts: Sequence[str]
    scores: Mapping[str, Rows]  # by measure
    diversity: Sequence[float] | None = None  # of each prompt's samples; None with one sample

    def write(self, folder: Path) -> None:
        """Keep it in a run's folder `evaluations`."""
        folder.mkdir(exist_ok=True)
        write_atomically(folder / f"step_{self.step:06d}.json", json.dumps(asdict(self)).encode())


def read_evaluation(path: Path) -> EvaluationRecord:
    """Read one; raises ValueError where the file is torn or something else."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        prompts = [str(prompt) for prompt in kept["prompts"]]
        scores = {
            str(name): [[_finite(score) for score in row] for _, row in zip(prompts, rows, strict=True)]
            for name, rows in kept["scores"].items()
        }
        diversity = kept.get("diversity")  # which older versions did not keep
        return EvaluationRecord(
            step=int(kept["step"]),
            prompts=prompts,
            scores=scores,
            diversity=None if diversity is None else [float(value) for value in diversity],
        )
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: is no evaluation: {error}") from None


def evaluation_files(folder: Path) -> list[Path]:
    """The files of a run's folder `evaluations`, by step."""
    return sorted(path for path in folder.glob("step_*.json") if re.fullmatch(r"step_\d+\.json", path.name))


def _finite(score: float | None) -> float | None:
    return float(score) if score is not None and math.isfinite(score) else None
