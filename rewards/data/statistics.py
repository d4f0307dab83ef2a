"""What was read of each source: how much was kept, what each filter took, and which rows were broken."""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

from rewards.data.comparison import Comparison, Pair

NAMED = 20  # rows of a source that are listed as broken in one way
CONFIDENCE_EDGES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
SIDE_EDGES = (256, 384, 512, 768, 1024, 1536, 2048)  # pixels, square root of the area


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """How many values fell below, between and above the edges.

    Example: ``Histogram(edges=(256, 512), counts=(0, 7, 1))``: seven values in [256, 512), one of 512 or more.
    """

    edges: tuple[float, ...]  # ascending
    counts: tuple[int, ...]  # one more than edges

    def rows(self) -> list[tuple[str, int]]:
        """Each bin in words, with its count."""
        words = [f"{low:g} to {high:g}" for low, high in zip(self.edges, self.edges[1:], strict=False)]
        return list(zip([f"< {self.edges[0]:g}", *words, f">= {self.edges[-1]:g}"], self.counts, strict=True))


@dataclass(frozen=True, kw_only=True)
class Losses:
    """What of a source was lost after its scan: images that broke off as they were encoded, and ends of prompts.

    Example: ``Losses(images=1, pairs=3, ties=0, cut_prompts=0)``: one image of a ranking of four.
    """

    images: int  # that stand in one of its pairs, each once
    pairs: int  # without ties
    ties: int
    cut_prompts: int  # too long for the text encoder; their pairs are in the set


@dataclass(frozen=True, kw_only=True)
class SourceStatistics:
    """What was read of one source. Every row is kept as a comparison or counted in `dropped`."""

    name: str
    format: str
    path: str
    weight: float
    rows: int
    comparisons: int  # kept
    pairs: int  # kept, without ties
    ties: int  # kept
    images: int  # of kept comparisons, each once
    prompts: int  # of kept comparisons, each once
    dropped: dict[str, int]  # reason -> rows, in the order of the filters
    repeated_pairs: int  # taken out because the same label was there before, in this source or an earlier one
    contradicting_pairs: int  # taken out because another label was there before
    first_bad: dict[str, tuple[str, ...]]  # reason -> at most 20 of the rows that are broken in that way
    first_contradicting: tuple[str, ...]  # at most 20
    confidence: Histogram  # of kept comparisons; where the data has none it is 1
    side: Histogram  # of kept images, square root of the area in pixels
    categories: dict[str, int]  # of kept comparisons, where the data has some
    lost: Losses = Losses(images=0, pairs=0, ties=0, cut_prompts=0)  # of what was kept


@dataclass(frozen=True, kw_only=True)
class MixtureStatistics:
    """What was read of every source."""

    sources: tuple[SourceStatistics, ...]

    def after(self, losses: Sequence[Losses]) -> MixtureStatistics:
        """The same counts, with what was lost of each source."""
        found = zip(self.sources, losses, strict=True)
        return MixtureStatistics(sources=tuple(replace(one, lost=lost) for one, lost in found))

    def to_json(self) -> str:
        """All of it as indented JSON."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    def to_markdown(self) -> str:
        """All of it as tables for a reader."""
        columns = ("weight", "rows", "comparisons", "pairs", "ties", "images", "prompts")
        last = ("lost images", "lost pairs", "lost ties", "cut prompts", "pairs in the set", "ties in the set")
        rows = [
            (one.name, one.format, f"{one.weight:g}", *(str(vars(one)[name]) for name in columns[1:]), *_left(one))
            for one in self.sources
        ]
        parts = ["# Preference data", _table(("source", "format", *columns, *last), rows)]
        for one in self.sources:
            parts += _source_sections(one)
        return "\n\n".join(parts) + "\n"


@dataclass(kw_only=True)
class SourceTally:
    """Counts one source while it is read; its sets of 63-bit hashes are let go of when `finish` is called."""

    name: str
    format: str
    path: str
    weight: float
    rows: int = 0
    comparisons: int = 0
    pairs: int = 0
    ties: int = 0
    images: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    repeated_pairs: int = 0
    contradicting_pairs: int = 0
    first_bad: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    first_contradicting: list[str] = field(default_factory=list)
    categories: Counter[str] = field(default_factory=Counter)
    pairs_by_prompt: dict[int, int] = field(default_factory=dict)
    num_prompts: int = 0
    _seen_images: set[int] = field(default_factory=set)
    _confidence: list[int] = field(default_factory=lambda: [0] * (len(CONFIDENCE_EDGES) + 1))
    _side: list[int] = field(default_factory=lambda: [0] * (len(SIDE_EDGES) + 1))

    def drop(self, reason: str, *, bad: str = "") -> None:
        """Count a row that is not kept; `bad` names one that is broken."""
        self.dropped[reason] += 1
        if bad and len(self.first_bad[reason]) < NAMED:
            self.first_bad[reason].append(bad)

    def contradict(self, text: str, pairs: int) -> None:
        """Count pairs of one row that were labelled otherwise before."""
        self.contradicting_pairs += pairs
        if pairs and len(self.first_contradicting) < NAMED:
            self.first_contradicting.append(text)

    def keep(
        self,
        comparison: Comparison,
        pairs: Sequence[Pair],
        *,
        prompt_key: int,
        image_keys: Sequence[int],
        sizes: Sequence[tuple[int, int]],
    ) -> None:
        """Count a comparison that is kept, with those of its pairs that are."""
        ties = sum(pair.is_tie for pair in pairs)
        self.comparisons += 1
        self.ties += ties
        self.pairs += len(pairs) - ties
        self.num_prompts += prompt_key not in self.pairs_by_prompt
        self.pairs_by_prompt[prompt_key] = self.pairs_by_prompt.get(prompt_key, 0) + len(pairs)
        self._confidence[bisect_right(CONFIDENCE_EDGES, comparison.confidence)] += 1
        if comparison.category:
            self.categories[comparison.category] += 1
        for key, (height, width) in zip(image_keys, sizes, strict=True):
            if key not in self._seen_images:
                self._seen_images.add(key)
                self.images += 1
                self._side[bisect_right(SIDE_EDGES, math.sqrt(height * width))] += 1

    def finish(self) -> None:
        """Let go of what only counting needed."""
        self.pairs_by_prompt = {}
        self._seen_images = set()

    def result(self, reasons: Sequence[str]) -> SourceStatistics:
        """The counts so far; `reasons` is the order of the filters."""
        return SourceStatistics(
            name=self.name,
            format=self.format,
            path=self.path,
            weight=self.weight,
            rows=self.rows,
            comparisons=self.comparisons,
            pairs=self.pairs,
            ties=self.ties,
            images=self.images,
            prompts=self.num_prompts,
            dropped={reason: self.dropped[reason] for reason in reasons if self.dropped[reason]},
            repeated_pairs=self.repeated_pairs,
            contradicting_pairs=self.contradicting_pairs,
            first_bad={reason: tuple(self.first_bad[reason]) for reason in reasons if reason in self.first_bad},
            first_contradicting=tuple(self.first_contradicting),
            confidence=Histogram(edges=CONFIDENCE_EDGES, counts=tuple(self._confidence)),
            side=Histogram(edges=SIDE_EDGES, counts=tuple(self._side)),
            categories=dict(sorted(self.categories.items())),
        )


def _left(one: SourceStatistics) -> tuple[str, ...]:
    lost = one.lost
    left = (one.pairs - lost.pairs, one.ties - lost.ties)
    return tuple(map(str, (lost.images, lost.pairs, lost.ties, lost.cut_prompts, *left)))


def _source_sections(one: SourceStatistics) -> list[str]:
    parts = [
        f"## {one.name}",
        f"`{one.path}`",
        _table(("not kept because of", "rows"), [(reason, str(count)) for reason, count in one.dropped.items()]),
        f"Pairs that came before: {one.repeated_pairs} with the same label, {one.contradicting_pairs} with another.",
        _table(("confidence", "comparisons"), [(words, str(count)) for words, count in one.confidence.rows()]),
        _table(("side in pixels", "images"), [(words, str(count)) for words, count in one.side.rows()]),
    ]
    if one.categories:
        counts = [(category, str(count)) for category, count in one.categories.items()]
        parts.append(_table(("category", "comparisons"), counts))
    for title, lines in (*one.first_bad.items(), ("contradicting", one.first_contradicting)):
        if lines:
            parts.append(f"The first of the reason {title}:\n\n" + "\n".join(f"- {line}" for line in lines))
    return parts


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
