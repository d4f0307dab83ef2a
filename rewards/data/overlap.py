"""What a validation set has in common with the set that is trained on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rewards.data.pairs import PairTable
from rewards.data.store import PreferenceStore


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """How many of the prompts and pairs that accuracy is measured on are trained on as well.

    Prompts in common are usual; a pair in common is one whose answer was seen, whichever image was preferred. Example:
    ``Overlap(prompts=12, of_prompts=31, pairs=0, of_pairs=40)``
    """

    prompts: int
    of_prompts: int
    pairs: int | None  # None where a set does not say which of its images are equal
    of_pairs: int

    @property
    def words(self) -> str:
        """All of it as a sentence; empty when nothing is in common."""
        if not self.prompts:
            return ""
        prompts = f"{self.prompts:,} of the {self.of_prompts:,} prompts of the validation pairs are also trained on"
        if self.pairs is None:
            return f"{prompts}; whether pairs are too is not known"
        if self.pairs == 0:
            return f"{prompts}, none of the {self.of_pairs:,} pairs is"
        return (
            f"{self.pairs:,} of the {self.of_pairs:,} validation pairs are also trained on, so that their accuracy "
            f"says little of others; {prompts}"
        )


def overlap(train: PreferenceStore, trained: PairTable, validation: PreferenceStore, measured: PairTable) -> Overlap:
    """What the `measured` pairs of one set have in common with the `trained` pairs of another.

    Prompts are one when their texts are, pairs when their prompts and both their images are, to a pixel.
    """
    texts = {train.prompts[row] for row in train.prompt[trained.winner].unique().tolist()}
    rows = validation.prompt[measured.winner].unique().tolist()
    shared = texts & {validation.prompts[row] for row in rows}
    pairs = None
    if train.mark is not None and validation.mark is not None:
        seen = set(_pairs(train, train.mark, trained, shared))
        pairs = sum(pair in seen for pair in _pairs(validation, validation.mark, measured, shared))
    return Overlap(
        prompts=len(shared),
        of_prompts=len(rows),
        pairs=pairs,
        of_pairs=len(measured),
    )


def _pairs(
    store: PreferenceStore, mark: torch.Tensor, table: PairTable, prompts: set[str]
) -> list[tuple[str, int, int]]:
    """Text and both marks, the lower one first, of the pairs under some prompts."""
    number = store.prompt[table.winner]
    own = torch.tensor([row for row, text in enumerate(store.prompts) if text in prompts], dtype=torch.int64)
    under = torch.isin(number, own)
    marks = torch.stack([mark[table.winner[under]], mark[table.loser[under]]], 1).sort(1)[0]
    texts = [store.prompts[row] for row in number[under].tolist()]
    return [(text, first, second) for text, (first, second) in zip(texts, marks.tolist(), strict=True)]
