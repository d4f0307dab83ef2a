"""The files of a judging: a line per image, and a summary with means and their standard errors."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowrl.base.atomic_file import write_atomically
from flowrl.base.errors import UserError
from flowrl.judge.judgement import OUTCOMES, Judgement, Tokens

if TYPE_CHECKING:
    from flowrl.judge.estimate import Prices
    from flowrl.judge.subjects import Subject

RESULTS, SUMMARY = "results.jsonl", "summary.json"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """An image and what became of it."""

    subject: Subject
    judgement: Judgement


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean over images, and how far it may be off.

    Example: ``Mean(mean=7.18, standard_error=0.04, images=2048, prompts=2048)``
    """

    mean: float
    standard_error: float | None  # None of a single image
    images: int
    prompts: int


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Who judged, and how it was asked."""

    judge: str
    endpoint: str = ""
    protocol: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)  # further fields of the request


@dataclass(frozen=True, kw_only=True)
class Group:
    """The images of one step of one run, or all files.

    Example: ``Group(run="runs/a", step=60, outcomes={"scored": 64}, dimensions={"overall": mean})``
    """

    run: str
    step: int | None
    outcomes: dict[str, int]
    dimensions: dict[str, Mean]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All that a judging comes to."""

    setting: Setting
    images: int
    outcomes: dict[str, int]
    dimensions: dict[str, Mean]  # of the images that have scores
    groups: list[Group]
    tokens: Tokens  # of all answers about these images; one that equal images share counts for each
    tokens_of_this_start: Tokens
    cost_of_this_start: float | None  # None without prices


def summarise(judged: Sequence[Judged], dimensions: Sequence[str], setting: Setting, prices: Prices) -> Summary:
    """The counts, means and tokens of all images, and of each step of each run."""
    groups: dict[tuple[str, int | None], list[Judged]] = {}
    for one in judged:
        run = "" if one.subject.step is None else str(one.subject.path.parent)
        groups.setdefault((run, one.subject.step), []).append(one)
    bought = _sum([one.judgement.bought for one in judged])
    return Summary(
        setting=setting,
        images=len(judged),
        outcomes=_outcomes(judged),
        dimensions=_means(judged, dimensions),
        groups=[
            Group(run=run, step=step, outcomes=_outcomes(part), dimensions=_means(part, dimensions))
            for (run, step), part in groups.items()
        ],
        tokens=_sum([one.judgement.tokens for one in judged]),
        tokens_of_this_start=bought,
        cost_of_this_start=prices.cost(bought) if prices else None,
    )


def mean_over_prompts(values: Sequence[float], prompts: Sequence[str]) -> Mean:
    """The mean of values, at least one, and its standard error with the prompt as what was drawn.

    Images of one prompt are alike, so that many of them say less than as many prompts: the error is that of a mean
    over clusters, which for one image per prompt is the usual one. With a single prompt it is that over its images, and
    says nothing of other prompts.
    """
    mean = sum(values) / len(values)
    clusters: Sequence[str | int] = prompts if len(set(prompts)) > 1 else range(len(values))
    residuals: dict[str | int, float] = {}
    for value, cluster in zip(values, clusters, strict=True):
        residuals[cluster] = residuals.get(cluster, 0.0) + value - mean
    count = len(residuals)
    error = None
    if count > 1:
        error = math.sqrt(count / (count - 1) * sum(one * one for one in residuals.values())) / len(values)
    return Mean(mean=mean, standard_error=error, images=len(values), prompts=len(set(prompts)))


def write_results(folder: Path, judged: Sequence[Judged], dimensions: Sequence[str], summary: Summary) -> None:
    """Write a line per image, in their order, and the summary; each file is replaced at once."""
    lines = "".join(json.dumps(_line(one, dimensions), ensure_ascii=False) + "\n" for one in judged)
    write_atomically(folder / RESULTS, lines.encode())
    write_atomically(folder / SUMMARY, (json.dumps(asdict(summary), indent=2) + "\n").encode())


@dataclass(frozen=True, kw_only=True)
class JudgedLine:
    """What the file says of one image of a run's sheets.

    Example: ``JudgedLine(run="hpsv3-0", step=60, cell=(0, 2), prompt="a cat", scores={"overall": 7.0})``
    """

    run: str  # the name of its folder
    step: int
    cell: tuple[int, int]  # row and column in the sheet
    prompt: str
    scores: Mapping[str, float] | None  # by dimension; None where there are none


def read_results(folder: Path) -> tuple[str, tuple[JudgedLine, ...]]:
    """Who judged the sheets of runs, and what became of each image; files without a run are left out.

    Raises UserError where the folder's files are not those of a judging.
    """
    path = folder / RESULTS
    try:
        judge = str(json.loads((folder / SUMMARY).read_text(encoding="utf-8"))["setting"]["judge"])
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        lines = [
            JudgedLine(
                run=Path(row["run"]).name,
                step=int(row["step"]),
                cell=_cell(row["file"]),
                prompt=str(row["prompt"]),
                scores=row["scores"],
            )
            for row in rows
            if "run" in row
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is not what flowrl judge wrote: {error}; judge again, or remove {folder}") from None
    return judge, tuple(lines)


def _cell(name: str) -> tuple[int, int]:
    """Row and column of an image of a sheet, from its name: SHEET#ROW.COLUMN."""
    row, _, column = name.rpartition("#")[2].partition(".")
    return int(row), int(column)


def table(summary: Summary) -> str:
    """The means for a terminal: a line per dimension."""
    width = max(map(len, summary.dimensions), default=0)
    lines = []
    for name, found in summary.dimensions.items():
        error = "" if found.standard_error is None else f" +- {found.standard_error:.2f}"
        lines.append(f"{name:<{width}}  {found.mean:5.2f}{error}")
    return "\n".join(lines)


def _line(one: Judged, dimensions: Sequence[str]) -> dict[str, Any]:
    said = one.judgement
    facts: dict[str, Any] = {"file": one.subject.name, "prompt": one.subject.prompt, "outcome": said.outcome}
    if one.subject.step is not None:
        facts |= {"run": str(one.subject.path.parent), "step": one.subject.step}
    facts["scores"] = dict(zip(dimensions, said.scores, strict=True)) if said.outcome == "scored" else None
    return facts | {"rationale": said.rationale, "problem": said.problem}


def _outcomes(judged: Sequence[Judged]) -> dict[str, int]:
    found = [one.judgement.outcome for one in judged]
    return {outcome: found.count(outcome) for outcome in OUTCOMES if outcome in found}


def _means(judged: Sequence[Judged], dimensions: Sequence[str]) -> dict[str, Mean]:
    scored = [one for one in judged if one.judgement.outcome == "scored"]
    if not scored:
        return {}
    prompts = [one.subject.prompt for one in scored]
    return {
        name: mean_over_prompts([one.judgement.scores[place] for one in scored], prompts)
        for place, name in enumerate(dimensions)
    }


def _sum(parts: Sequence[Tokens]) -> Tokens:
    return sum(parts, Tokens())
