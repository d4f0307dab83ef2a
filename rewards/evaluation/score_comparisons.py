"""Scores every image of a stream of comparisons with several rewards side by side, each image read once.

Memory holds the images of one chunk and, for each image seen, its key and scores.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from flowrl.base.errors import UserError
from flowrl.models.latent_inputs import LatentInputs
from rewards.data.comparison import BadRow, Comparison, Row, SkippedRow, fault_of
from rewards.data.images import BadImage, ImageReader
from rewards.evaluation.cached_reward import CachedReward, OpenedSample, Sample
from rewards.evaluation.judged_pairs import JudgedPairs, JudgedPairsBuilder
from rewards.evaluation.score_cache import ScoreCache

_NAMED = 20  # faults that are kept by name


@dataclass(kw_only=True)
class Faults:
    """What could not be used: how much, and the first by name. Raises UserError beyond `limit`."""

    what: str
    limit: int
    count: int = 0
    named: list[str] = field(default_factory=list)

    def add(self, fault: str) -> None:
        """Count one more."""
        self.count += 1
        if len(self.named) < _NAMED:
            self.named.append(fault)
        if self.count > self.limit:
            raise UserError(
                f"more than {self.limit} {self.what} cannot be used, the last is {fault}; mend them or raise max_bad"
            )


@dataclass(frozen=True, kw_only=True)
class ScoredComparisons:
    """The pairs of a source and what R rewards say of its N images; NaN where an image or a score is missing."""

    pairs: JudgedPairs
    scores: torch.Tensor  # [R, N] float64
    broken: torch.Tensor  # [N] bool: the image was to be read and could not be
    num_comparisons: int
    bad_rows: Faults
    bad_images: Faults
    skipped_rows: int

    @property
    def comparable(self) -> JudgedPairs:
        """The pairs both of whose images every reward has scored: all rewards are measured on the same."""
        known = self.scores.isfinite().all(0)
        return self.pairs.select(known[self.pairs.table.winner] & known[self.pairs.table.loser])

    @property
    def unscored(self) -> list[int]:
        """For each reward, how many images that are in order have no finite score."""
        return (~self.scores.isfinite() & ~self.broken).sum(1).tolist()


class ScoringPass:
    """One pass over a source: reads images, asks each reward for what its cache lacks, and collects the pairs.

    `images_per_chunk` images (or a few more: comparisons stay whole) are in memory at once: 128 of 1024 x 1024 pixels
    are 400 MB.
    """

    def __init__(
        self,
        rewards: Sequence[CachedReward],
        caches: Sequence[ScoreCache],
        *,
        inputs: LatentInputs | None,
        seed: int,
        max_bad: int,
        images_per_chunk: int,
    ) -> None:
        self._rewards = rewards
        self._caches = caches
        self._inputs = inputs
        self._seed = seed
        self._images_per_chunk = images_per_chunk
        self._reader = ImageReader()
        self._pairs = JudgedPairsBuilder()
        self._rows: dict[str, int] = {}  # key of a sample -> row of the score table
        self._scores = [array("d") for _ in rewards]
        self._broken = array("b")
        self._bad_rows = Faults(what="rows", limit=max_bad)
        self._bad_images = Faults(what="images", limit=max_bad)
        self._skipped = 0

    def run(self, rows: Iterable[Row], advance: Callable[[int], object]) -> ScoredComparisons:
        """Score all images of `rows`, in their order; `advance` is told of rows that are done.

        Raises UserError beyond `max_bad` bad rows or images.
        """
        for num_rows, chunk in self._chunks(rows):
            self._score(chunk)
            advance(num_rows)
        return ScoredComparisons(
            pairs=self._pairs.build(),
            scores=torch.from_numpy(np.array(self._scores, dtype=np.float64)).reshape(len(self._rewards), -1),
            broken=torch.from_numpy(np.array(self._broken, dtype=np.bool_)),
            num_comparisons=self._pairs.num_comparisons,
            bad_rows=self._bad_rows,
            bad_images=self._bad_images,
            skipped_rows=self._skipped,
        )

    def _chunks(self, rows: Iterable[Row]) -> Iterator[tuple[int, dict[str, Sample]]]:
        """New samples by key, some images at a time, and how many rows they took; pairs are collected on the way."""
        chunk: dict[str, Sample] = {}
        num_rows = 0
        for row in rows:
            num_rows += 1
            comparison = self._usable(row)
            if comparison is None:
                continue
            keys = []
            for image in comparison.images:
                sample = Sample.of(comparison.prompt, image)
                key = sample.key
                if key not in self._rows:
                    self._rows[key] = len(self._rows)
                    chunk[key] = sample
                keys.append(self._rows[key])
            self._pairs.add(comparison, keys)
            if len(chunk) >= self._images_per_chunk:
                yield num_rows, chunk
                chunk, num_rows = {}, 0
        yield num_rows, chunk

    def _usable(self, row: Row) -> Comparison | None:
        if isinstance(row, SkippedRow):
            self._skipped += 1
            return None
        if isinstance(row, BadRow):
            self._bad_rows.add(f"{row.origin}: {row.reason}")
            return None
        if fault := fault_of(row):
            self._bad_rows.add(f"{row.origin}: {fault}")
            return None
        return row

    def _score(self, chunk: dict[str, Sample]) -> None:
        missing = [cache.missing(chunk) for cache in self._caches]
        needed = set().union(*missing)
        opened = self._open({key: sample for key, sample in chunk.items() if key in needed})
        for reward, cache, keys in zip(self._rewards, self._caches, missing, strict=True):
            if wanted := [opened[key] for key in keys if key in opened]:
                cache.add(reward.score(wanted, self._inputs, self._seed))
        for column, cache in zip(self._scores, self._caches, strict=True):
            column.extend(cache[key] if key in cache else math.nan for key in chunk)
        self._broken.extend(key in needed and key not in opened for key in chunk)

    def _open(self, samples: dict[str, Sample]) -> dict[str, OpenedSample]:
        opened = {}
        for key, sample in samples.items():
            try:
                opened[key] = OpenedSample(sample=sample, key=key, pixels=self._reader.pixels(sample.image))
            except BadImage as error:
                self._bad_images.add(str(error))
        return opened
