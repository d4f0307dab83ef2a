"""One source of preferences: a file in a known format, as a configuration names it, with its filters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from omegaconf import MISSING

from flowrl.base.config_tree import ConfigError
from rewards.data import hpdv2, hpdv3, image_reward, jsonl, pick_a_pic
from rewards.data.comparison import Comparison, Row

_JSON_FORMATS = {
    "hpdv3": hpdv3.read,
    "hpdv2": hpdv2.read,
    "image_reward": image_reward.read,
    "jsonl": jsonl.read,
}

# The keys of the filters by row.
CATEGORIES = "categories"
SHARE = "share"
MIN_CONFIDENCE = "min_confidence"
KEEP_TIES = "keep_ties"


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """Where preferences come from, and which of them are taken.

    Example: ``DataSource(format="hpdv3", path="/data/HPDv3/train.json", min_confidence=0.95)``
    """

    format: Literal["hpdv3", "hpdv2", "pick_a_pic", "image_reward", "jsonl"] = MISSING
    path: str = MISSING  # a file; for pick_a_pic also a folder or a pattern, such as data/train-*.parquet
    images: str = ""  # where relative image paths start; empty: the file's folder
    name: str = ""  # in reports; empty: the format
    weight: float = 1.0  # how many times each comparison is seen in an epoch, on average
    min_confidence: float = 0.0  # HPSv3 takes 0.95 and more (published)
    max_pairs_per_prompt: int = 0  # 0 = all
    share: float = 1.0  # of the prompts, at random; a smaller share is a part of a larger one
    min_area: int = 0  # pixels of every image of a comparison
    keep_ties: bool = True
    categories: list[str] = field(default_factory=list)  # empty: all

    @property
    def title(self) -> str:
        """What reports and messages call it."""
        return self.name or self.format

    def leaves_out(self, row: Comparison) -> str:
        """The key that leaves a comparison out by what its row says; empty when none does.

        The filters that look at images or at other rows, `min_area` and `max_pairs_per_prompt`, are the mixture's.
        """
        from flowrl.core.seeds import derive  # which loads torch; a configuration is read without it

        if self.categories and row.category not in self.categories:
            return CATEGORIES
        # By prompt, so that no prompt is half in; a smaller share has the same prompts and fewer.
        if self.share < 1 and derive(SHARE, row.prompt) >= self.share * 2**63:
            return SHARE
        if row.confidence < self.min_confidence:
            return MIN_CONFIDENCE
        if not self.keep_ties and len(set(row.ranks)) == 1:
            return KEEP_TIES
        return ""


def check_source(source: DataSource, key: str) -> None:
    """Raise ConfigError naming the key, which starts with `key`, unless every value lies in its range."""
    rules = [
        ("path", source.path != "", "name a file"),
        ("weight", source.weight > 0, "be over 0; leave the source out to see none of it"),
        ("min_confidence", 0 <= source.min_confidence <= 1, "lie in [0, 1]"),
        ("max_pairs_per_prompt", source.max_pairs_per_prompt >= 0, "be at least 0, where 0 takes all"),
        ("share", 0 < source.share <= 1, "lie in (0, 1]"),
        ("min_area", source.min_area >= 0, "be at least 0 pixels"),
        ("images", source.format != "pick_a_pic" or not source.images, "be empty: pick_a_pic holds its images"),
    ]
    values = vars(source)
    for name, holds, rule in rules:
        if not holds:
            raise ConfigError(f"{key}.{name} must {rule}, got {values[name]!r}")


def open_source(source: DataSource) -> Iterator[Row]:
    """Every row of a source in the order of its file, before any filter.

    Raises UserError when a file is missing or, after the rows before that, cut off or damaged.
    """
    if source.format == "pick_a_pic":
        return pick_a_pic.read(source.path)
    path = Path(source.path)
    return _JSON_FORMATS[source.format](path, Path(source.images) if source.images else path.parent)
