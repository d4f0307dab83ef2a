"""Images of the same prompt and noise across the base model, the arms and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flowrl.matched.comparison import Findings
from flowrl.matched.curves import style
from flowrl.matched.measures import JUDGE
from flowrl.matched.record import MatchedRecord
from flowrl.report.page import Picture, PictureCard, PictureRow
from flowrl.samples import Sheet, read_sheet, sheet_steps

_MOST_COLUMNS = 6
_MOST_PROMPTS = 8
_SAMPLE = 0  # always the first, so that nobody has chosen it

Cells = Mapping[tuple[str, int, int, int], Mapping[str, float]]  # run, step, row, column -> dimension -> score


def picture_cards(found: Findings) -> list[PictureCard]:
    """A card for each of the first held-out prompts: a row per arm, a column per step, all from the same noise.

    They are of the lowest seed; empty where its runs have no sheets of the same steps.
    """
    record = found.record
    runs = [arm.runs[record.seeds[0]] for arm in record.arms]
    steps = _shown_steps([sheet_steps(run.directory / "samples") for run in runs], [one.step for one in found.keep])
    sheets = [[read_sheet(run.directory / "samples", step) for step in steps] for run in runs]
    readable = [[sheet for sheet in one if sheet is not None] for one in sheets]
    if not all(readable):
        return []
    prompts = [
        text
        for text in dict.fromkeys(readable[0][0].prompts)
        if all(text in sheet.prompts for one in readable for sheet in one)
    ]
    names, cells = _shown_scores(found), _cells(record)
    keep = {one.arm: one.step for one in found.keep if one.step > 0}
    columns = ["base" if step == 0 else f"step {step}" for step in steps]
    cards = []
    for prompt in prompts[:_MOST_PROMPTS]:
        rows = []
        for place, (arm, run) in enumerate(zip(record.arms, runs, strict=True)):
            pictures = []
            for step, sheet in zip(steps, sheets[place], strict=True):
                scores = _scores(sheet, prompt, names, cells, run.directory.name) if sheet is not None else []
                when = "before training" if step == 0 else f"{arm.name} after step {step}"
                pictures.append(_picture(sheet, prompt, when, scores, marked=keep.get(arm.name) == step))
            rows.append(PictureRow(label=arm.name, slot=place + 1, pictures=pictures, style=style(place)))
        cards.append(PictureCard(prompt=prompt, columns=columns, rows=rows))
    return cards


def _shown_steps(there: Sequence[Sequence[int]], keep: Sequence[int]) -> list[int]:
    """A few of the steps that all have: the first, the last, those to keep, and others evenly between."""
    shared = sorted(set.intersection(*map(set, there))) if all(there) else []
    if len(shared) <= _MOST_COLUMNS:
        return shared
    chosen = {shared[0], shared[-1], *(step for step in keep if step in shared)}
    while len(chosen) < _MOST_COLUMNS:  # always the one that is farthest from those that are there
        rest = [step for step in shared if step not in chosen]
        chosen.add(max(rest, key=lambda step: (min(abs(step - other) for other in chosen), step)))
    return sorted(chosen)


def _shown_scores(found: Findings) -> list[str]:
    """The measure that decides and what the arms were trained on, by the names of the sheets and of the judge."""
    trained = [name for arm in found.record.arms for name in arm.trained_rewards[:1]]
    return list(dict.fromkeys([*([found.decides.name] if found.decides is not None else []), *trained]))


def _cells(record: MatchedRecord) -> Cells:
    return {(line.run, line.step, *line.cell): line.scores for line in record.judged if line.scores is not None}


def _scores(sheet: Sheet, prompt: str, names: Sequence[str], cells: Cells, run: str) -> list[tuple[str, float]]:
    row = sheet.prompts.index(prompt)
    judged = cells.get((run, sheet.step, row, _SAMPLE), {})
    scores = []
    for name in names:
        value = judged.get(name.removeprefix(JUDGE)) if name.startswith(JUDGE) else sheet.score(name, row, _SAMPLE)
        if value is not None:
            scores.append((name, value))
    return scores


def _picture(
    sheet: Sheet | None, prompt: str, when: str, scores: Sequence[tuple[str, float]], *, marked: bool
) -> Picture | None:
    if sheet is None:
        return None
    image = sheet.cell(sheet.prompts.index(prompt), _SAMPLE)
    return Picture(image=image, alt=f"{prompt}: {when}", scores=scores, marked=marked)
