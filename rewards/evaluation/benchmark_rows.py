"""The rows of a benchmark's sources, and whether they suit its protocols."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flowrl.base.errors import UserError
from rewards.data.comparison import Comparison, Row, fault_of
from rewards.data.source import DataSource, open_source
from rewards.evaluation.accuracy import find_protocol
from rewards.evaluation.config import BenchmarkEntry
from rewards.evaluation.score_prepared import open_prepared


def check_first_rows(benchmark: BenchmarkEntry) -> None:
    """Raise UserError, before anything is scored, when data cannot be opened or begin with what does not suit.

    Of sources the rows up to the first usable one are looked at, of a prepared set all pairs.
    """
    if benchmark.prepared:
        _, table = open_prepared(benchmark.prepared, benchmark.pair_sources)
        for protocol in map(find_protocol, benchmark.protocols):
            if not protocol.suits(table):
                raise _ranking(benchmark, protocol.name, "a comparison")
        return
    for _ in suited(rows_of(benchmark.sources, 1), benchmark):
        pass
    for _ in rows_of(benchmark.validation, 1):
        pass


def suited(rows: Iterator[Row], benchmark: BenchmarkEntry) -> Iterator[Row]:
    """The rows as they come; raises UserError when a protocol for pairs meets a ranking of more images."""
    strict = next((name for name in benchmark.protocols if find_protocol(name).pairs_only), "")
    for row in rows:
        if strict and isinstance(row, Comparison) and len(row.images) > 2:
            raise _ranking(benchmark, strict, row.origin)
        yield row


def _ranking(benchmark: BenchmarkEntry, protocol: str, where: str) -> UserError:
    return UserError(
        f"benchmarks, {benchmark.name!r}: protocol {protocol} counts pairs, but {where} ranks more than two images; "
        "use rankings_pooled or rankings_per_prompt"
    )


def rows_of(sources: Sequence[DataSource], limit: int) -> Iterator[Row]:
    """The rows of all sources without what their filters leave out, up to the `limit`-th comparison of each (0: all).

    Rows that cannot be used, or say nothing about a preference, do not count.
    """
    for source in sources:
        taken = 0
        for row in open_source(source):
            if isinstance(row, Comparison):
                if source.leaves_out(row):
                    continue
                taken += not fault_of(row)
            yield row
            if limit and taken == limit:
                break
