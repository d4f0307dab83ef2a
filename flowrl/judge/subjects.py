"""What is judged: image files with their prompts, or the sample sheets of runs and of experiments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from flowrl.base.errors import UserError
from flowrl.base.images import UnreadableImage, image_pixels
from flowrl.matrix.folder import is_experiment, runs_begun
from flowrl.samples import Sheet, read_sheet, sheet_steps
from flowrl.score.inputs import IMAGE_SUFFIXES, InputError, find_files, image_samples
from flowrl.score.prompts import read_prompts

_SHEETS = "samples"  # the folder of a run that holds them


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One image to judge.

    Example: the third sample of the first prompt in a sheet is ``Subject(name="runs/a/samples/step_000060.png#0.2",
    prompt="a cat", path=Path("runs/a/samples"), step=60, cell=(0, 2))``
    """

    name: str
    prompt: str
    path: Path  # the file, or the folder of the sheet
    step: int | None = None  # of the run, where it is of a sheet
    cell: tuple[int, int] = (0, 0)  # row and column in the sheet

    def pixels(self) -> torch.Tensor:
        """The image [3, H, W] uint8; raises UserError when it cannot be read (any more)."""
        if self.step is not None:
            image = np.array(_sheet(self.path, self.step).cell(*self.cell))
            return torch.from_numpy(image).permute(2, 0, 1).contiguous()
        try:
            return image_pixels(self.path)
        except UnreadableImage as error:
            raise InputError(f"{self.name}: {error}; mend it or leave it out, then start again") from None


def find_subjects(
    places: Sequence[Path], prompts: Path | None, prompt: str | None, steps: Sequence[int]
) -> list[Subject]:
    """The images of `places`: runs and experiments, or image files and folders of them, in their order.

    Of runs the sheets of `steps`, all of them where there are none; of an experiment those of each run that has begun,
    as far as it has come. Files need one of `prompts` and `prompt`. Raises UserError when that does not fit together,
    or nothing is found.
    """
    runs = [place for place in places if is_experiment(place) or (place / _SHEETS).is_dir()]
    if runs and len(runs) < len(places):
        other = next(place for place in places if place not in runs)
        what = "an experiment" if is_experiment(runs[0]) else "a run"
        raise UserError(f"{runs[0]} is {what} and {other} is not: give runs or images, not both")
    if runs:
        if prompts is not None or prompt is not None:
            raise UserError(f"{runs[0]}: the samples of a run have prompts of their own; leave out --prompts, --prompt")
        found = (_of_experiment(run, steps) if is_experiment(run) else _of_run(run, steps) for run in runs)
        return [subject for some in found for subject in some]
    if steps:
        raise UserError(f"--step is of runs, and {places[0]} is none: there is no folder {_SHEETS}/ in it")
    return _of_files(places, prompts, prompt)


def read_all(subjects: Iterable[Subject]) -> Iterator[torch.Tensor]:
    """Their images, each read when its turn comes."""
    for subject in subjects:
        yield subject.pixels()


def _of_files(places: Sequence[Path], prompts: Path | None, prompt: str | None) -> list[Subject]:
    samples = image_samples(find_files(places, IMAGE_SUFFIXES))
    for sample in samples:
        if sample.problem:
            raise InputError(f"{sample.name}: {sample.problem}; mend it or leave it out, then start again")
    if prompts is None and prompt is None:
        raise UserError("images are judged against their prompts: give --prompts FILE, or --prompt TEXT for all")
    texts = [prompt or ""] * len(samples) if prompts is None else read_prompts(prompts, samples)
    for sample, text in zip(samples, texts, strict=True):
        if not text.strip():
            raise UserError(f"{sample.name}: its prompt is empty; there is nothing to judge it against")
    return [
        Subject(name=sample.name, prompt=text, path=sample.path) for sample, text in zip(samples, texts, strict=True)
    ]


def _of_experiment(folder: Path, steps: Sequence[int]) -> list[Subject]:
    """Those of its runs, in the order of the manifest; a run that is not so far has fewer steps."""
    there = {run: sheet_steps(run / _SHEETS) for run in runs_begun(folder)}
    every = sorted({step for own in there.values() for step in own})
    if not every:
        raise UserError(f"{folder}: no run of it has sample sheets yet; flowrl matrix EXPERIMENT --run trains them")
    if missing := [step for step in steps if step not in every]:
        raise UserError(f"--step {missing[0]}: the runs of {folder} have samples of the steps {_numbers(every)}")
    subjects = []
    for run, own in there.items():
        if wanted := [step for step in steps or own if step in own]:
            subjects += _of_run(run, wanted)
    return subjects


def _numbers(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps)) or "none"


def _of_run(run: Path, steps: Sequence[int]) -> list[Subject]:
    folder = run / _SHEETS
    there = sheet_steps(folder)
    if missing := [step for step in steps if step not in there]:
        raise UserError(f"--step {missing[0]}: {run} has samples of the steps {_numbers(there)}")
    if not there:
        raise UserError(f"{folder}: there are no sample sheets in it yet")
    subjects = []
    for step in steps or there:
        sheet = _sheet(folder, step)
        subjects += [
            Subject(
                name=f"{folder / f'step_{step:06d}.png'}#{row}.{column}",
                prompt=text,
                path=folder,
                step=step,
                cell=(row, column),
            )
            for row, text in enumerate(sheet.prompts)
            for column in range(sheet.columns)
        ]
    return subjects


@lru_cache(maxsize=1)  # the cells of a sheet are asked for one after the other
def _sheet(folder: Path, step: int) -> Sheet:
    sheet = read_sheet(folder, step)
    if sheet is None:
        raise UserError(f"{folder}: the sheet of step {step} is torn; leave it out with --step, then start again")
    return sheet
