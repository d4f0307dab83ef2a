"""Reads a mixture of preference sources once: every row checked and filtered, what is broken counted and named.

Rows are never held. What is held for each pair, image and prompt is a 63-bit hash; the chance that any two of three
million differ in text and not in hash is below one in a million.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flowrl.base.errors import UserError
from flowrl.core.seeds import derive
from rewards.data.comparison import BadRow, Comparison, ImageRef, Pair, SkippedRow, fault_of, pairs_of
from rewards.data.images import BadImage, ImageReader
from rewards.data.source import CATEGORIES, KEEP_TIES, MIN_CONFIDENCE, SHARE, DataSource, open_source
from rewards.data.statistics import MixtureStatistics, SourceTally

# Why a row is not kept, in the order of the filters.
BROKEN_ROW = "broken row"
NO_PREFERENCE = "no preference in it"
REPEATED = "repeated"
CONTRADICTING = "contradicting"
BROKEN_IMAGE = "broken image"
MIN_AREA = "min_area"
MAX_PAIRS = "max_pairs_per_prompt"
REASONS = (
    BROKEN_ROW,
    NO_PREFERENCE,
    CATEGORIES,
    SHARE,
    MIN_CONFIDENCE,
    KEEP_TIES,
    REPEATED,
    CONTRADICTING,
    BROKEN_IMAGE,
    MIN_AREA,
    MAX_PAIRS,
)
_JUDGED_FROM = 1000  # rows; a share of fewer says little
_IN_MESSAGE = 3  # broken rows that an error names


@dataclass(frozen=True, kw_only=True)
class ScannedComparison:
    """A comparison that passed every check and filter.

    Example: a pair of two square images of the first source: ``source=0, sizes=((512, 512), (1024, 1024)),
    pairs=(Pair(winner=0, loser=1, is_tie=False),)``
    """

    comparison: Comparison
    source: int  # index into the sources
    sizes: tuple[tuple[int, int], ...]  # height and width in pixels of each image
    pairs: tuple[Pair, ...]  # those to use; one or more


class MixtureScan:
    """Iterates over what the sources hold, in the order of sources and files; each iteration reads them anew.

    A broken row or image is skipped until such rows are more than `max_bad_share` of those looked at, which is judged
    from 1000 on and at the end of each source. Raises UserError then, when nothing of a source is left, and when a file
    is missing or damaged. An image that is cut off after its header is found only when its pixels are read.
    """

    def __init__(self, sources: Sequence[DataSource], *, max_bad_share: float = 0.01) -> None:
        self._sources = tuple(sources)
        self._max_bad_share = max_bad_share
        self._tallies: list[SourceTally] = []

    @property
    def statistics(self) -> MixtureStatistics:
        """The counts of the last iteration so far."""
        return MixtureStatistics(sources=tuple(tally.result(REASONS) for tally in self._tallies))

    def __iter__(self) -> Iterator[ScannedComparison]:
        self._tallies = []
        labels: dict[int, int] = {}
        images = _SizeCache()
        for index, source in enumerate(self._sources):
            tally = SourceTally(name=source.title, format=source.format, path=source.path, weight=source.weight)
            self._tallies.append(tally)
            yield from _SourceScan(index, source, tally, labels, images, self._max_bad_share).comparisons()
            tally.finish()


class _SizeCache:
    """The size of every image that was asked for, read once."""

    def __init__(self) -> None:
        self._reader = ImageReader()
        self._sizes: dict[int, tuple[int, int]] = {}
        self._distinct: dict[tuple[int, int], tuple[int, int]] = {}  # images share the few sizes there are
        self._broken: dict[int, str] = {}

    def size(self, image: ImageRef, key: int) -> tuple[int, int]:
        """Height and width; raises BadImage, for a broken image each time it is asked for."""
        if key in self._broken:
            raise BadImage(self._broken[key])
        if key not in self._sizes:
            try:
                size = self._reader.size(image)
            except BadImage as error:
                self._broken[key] = str(error)
                raise
            self._sizes[key] = self._distinct.setdefault(size, size)
        return self._sizes[key]


class _SourceScan:
    """The scan of one source; `labels` and `images` are those of the whole mixture."""

    def __init__(
        self,
        index: int,
        source: DataSource,
        tally: SourceTally,
        labels: dict[int, int],
        images: _SizeCache,
        max_bad_share: float,
    ) -> None:
        self._index = index
        self._source = source
        self._tally = tally
        self._labels = labels
        self._images = images
        self._max_bad_share = max_bad_share
        self._num_opened = 0  # comparisons whose images were looked at

    def comparisons(self) -> Iterator[ScannedComparison]:
        tally = self._tally
        for row in open_source(self._source):
            tally.rows += 1
            if isinstance(row, SkippedRow):
                tally.drop(NO_PREFERENCE)
            elif isinstance(row, BadRow):
                tally.drop(BROKEN_ROW, bad=f"{row.origin}: {row.reason}")
            elif fault := fault_of(row):
                tally.drop(BROKEN_ROW, bad=f"{row.origin}: {fault}")
            elif reason := self._source.leaves_out(row):
                tally.drop(reason)
            elif scanned := self._scan(row):
                yield scanned
            self._judge(at_least=_JUDGED_FROM)
        self._judge(at_least=1)
        if not tally.comparisons:
            raise UserError(self._nothing_left())

    def _scan(self, row: Comparison) -> ScannedComparison | None:
        prompt_key = derive(row.prompt)
        image_keys = [derive(image.identity) for image in row.images]
        new = self._new_pairs(row, prompt_key, image_keys)
        if not new:
            return None
        try:
            self._num_opened += 1
            sizes = tuple(self._images.size(image, key) for image, key in zip(row.images, image_keys, strict=True))
        except BadImage as error:
            self._tally.drop(BROKEN_IMAGE, bad=f"{row.origin}: {error}")
            return None
        if min(height * width for height, width in sizes) < self._source.min_area:
            self._tally.drop(MIN_AREA)
            return None
        chosen = self._within_limit(new, prompt_key)
        if not chosen:
            self._tally.drop(MAX_PAIRS)
            return None
        self._labels.update({key: label for _, key, label in chosen})
        pairs = tuple(pair for pair, _, _ in chosen)
        self._tally.keep(row, pairs, prompt_key=prompt_key, image_keys=image_keys, sizes=sizes)
        return ScannedComparison(comparison=row, source=self._index, sizes=sizes, pairs=pairs)

    def _new_pairs(self, row: Comparison, prompt_key: int, image_keys: list[int]) -> list[tuple[Pair, int, int]]:
        """The pairs, each with its key and its label, that were not labelled before; else the row is dropped."""
        new, repeated, contradicting = [], 0, 0
        for pair in pairs_of(row):
            if pair.is_tie and not self._source.keep_ties:
                continue
            winner, loser = image_keys[pair.winner], image_keys[pair.loser]
            key = derive(prompt_key, min(winner, loser), max(winner, loser))
            label = 0 if pair.is_tie else 1 if winner < loser else 2
            if key not in self._labels:
                new.append((pair, key, label))
            elif self._labels[key] == label:
                repeated += 1
            else:
                contradicting += 1
        self._tally.repeated_pairs += repeated
        self._tally.contradict(f"{row.origin}: {contradicting} of its pairs were labelled otherwise", contradicting)
        if not new:
            self._tally.drop(CONTRADICTING if contradicting else REPEATED)
        return new

    def _within_limit(self, pairs: list[tuple[Pair, int, int]], prompt_key: int) -> list[tuple[Pair, int, int]]:
        limit = self._source.max_pairs_per_prompt
        if not limit:
            return pairs
        room = max(0, limit - self._tally.pairs_by_prompt.get(prompt_key, 0))
        # Of a ranking, those with the least hashes: a random choice, where the first pairs would all have one image.
        keys = sorted(key for _, key, _ in pairs)[:room]
        return [chosen for chosen in pairs if chosen[1] in keys]

    def _judge(self, *, at_least: int) -> None:
        tally = self._tally
        for reason, looked_at, remedy in (
            (BROKEN_ROW, tally.rows, "mend the data or raise it"),
            (BROKEN_IMAGE, self._num_opened, "mend the data, correct the source's images, or raise it"),
        ):
            bad = tally.dropped[reason]
            if looked_at >= at_least and bad > self._max_bad_share * looked_at:
                raise UserError(
                    f"{self._source.path}: {bad} of {looked_at} rows are unusable ({reason}), more than "
                    f"data.max_bad_share = {self._max_bad_share:g}; {remedy}. The first: "
                    f"{'; '.join(tally.first_bad[reason][:_IN_MESSAGE])}"
                )

    def _nothing_left(self) -> str:
        dropped = self._tally.result(REASONS).dropped
        taken = ", ".join(f"{reason} {count}" for reason, count in dropped.items()) or "the file holds none"
        return f"{self._source.path}: no comparison is left of {self._tally.rows} rows; taken out by: {taken}"
