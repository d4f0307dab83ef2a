"""What every preference format is read as: the images that one prompt got, and how they were ranked."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ImageRef:
    """Where the bytes of one image are: a file of its own, or a cell of a parquet file.

    Example: ``ImageRef(path="/data/HPDv3/images/kolors/0001.png")``
    """

    path: str
    row: int = -1  # of a parquet file; -1: the file is the image
    column: str = ""  # of a parquet file
    uid: str = ""  # the data's own name of the image, where one image lies in several places

    @property
    def identity(self) -> str:
        """What two references to one image have in common."""
        return self.uid or str(self)

    def __str__(self) -> str:
        return self.path if self.row < 0 else f"{self.path}[{self.row}].{self.column}"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The images of one prompt and their ranks, as one annotation gave them; a pair is a ranking of two.

    Example: a pair whose first image is preferred has ``ranks=(0.0, 1.0)``, a tie ``ranks=(0.0, 0.0)``.
    """

    prompt: str
    images: tuple[ImageRef, ...]  # at least 2
    ranks: tuple[float, ...]  # one for each image; lower is better, equal is a tie
    origin: str  # what messages call it: file name and row
    confidence: float = 1.0  # of the annotation in [0, 1], where the data has one
    weight: float = 1.0  # of its pairs in the loss, where the data has one
    category: str = ""  # for tables by category, where the data has one


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """A row that cannot be used, and why; it is counted and named, and the reading goes on.

    Example: ``BadRow(origin="train.json[17]", reason="prompt is empty")``
    """

    origin: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class SkippedRow:
    """A row that is in order and says nothing about a preference, such as one without a label; it is counted.

    Example: ``SkippedRow(origin="train-00000.parquet[17]", reason="no label")``
    """

    origin: str
    reason: str


Row = Comparison | BadRow | SkippedRow


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two images of a comparison by their place in it: the first is preferred, or they are tied.

    Example: ``Pair(winner=2, loser=0, is_tie=False)``
    """

    winner: int  # of a tie: the one that comes first
    loser: int
    is_tie: bool


def pairs_of(comparison: Comparison) -> tuple[Pair, ...]:
    """Every two images of a comparison, in the order of their places; n images make n (n - 1) / 2 pairs."""
    return tuple(
        Pair(winner=first, loser=second, is_tie=rank == other)
        if rank <= other
        else Pair(winner=second, loser=first, is_tie=False)
        for (first, rank), (second, other) in itertools.combinations(enumerate(comparison.ranks), 2)
    )


def fault_of(comparison: Comparison) -> str:
    """Why a comparison as it was read cannot be used; empty when it can, as far as that shows without its images."""
    images, ranks = comparison.images, comparison.ranks
    if not comparison.prompt.strip():
        return "the prompt is empty"
    if len(images) < 2:
        return f"a comparison needs two images or more, got {len(images)}"
    if len(ranks) != len(images):
        return f"there must be a rank for each image, got {len(ranks)} for {len(images)}"
    if not all(map(math.isfinite, ranks)):
        return "a rank is not a finite number"
    if len({image.identity for image in images}) < len(images):
        return "an image is compared with itself"
    if not 0 <= comparison.confidence <= 1:
        return f"the confidence must lie in [0, 1], got {comparison.confidence:g}"
    if not (comparison.weight > 0 and math.isfinite(comparison.weight)):
        return f"the weight must be over 0, got {comparison.weight:g}"
    return ""
