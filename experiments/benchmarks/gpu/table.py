"""A record as a page of Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.benchmarks.gpu import case_names
from experiments.benchmarks.gpu.published import TABLE_2, PublishedRow
from experiments.benchmarks.gpu.record import Case, PartRecord, Record

_HEADER = (
    "case",
    "seconds",
    "spread",
    "images/s",
    "TFLOP/s",
    "of matmul",
    "peak GB",
    "reserved GB",
    "plan GB",
    "ratio",
)
_NONE = "-"


def page(record: Record) -> str:
    """The whole page."""
    where, device = record.environment, record.device
    commit = (where.git_commit or "unknown")[:12] + (" with changes" if where.git_dirty else "")
    packages = ", ".join(f"{name} {version}" for name, version in where.packages.items())
    lines = [
        f"# {device.name}, {where.started[:10]}",
        "",
        *(["**Tiny shapes on a CPU: a trial of the benchmark, not a measurement.**", ""] if record.small else []),
        f"- command: `{where.command}`, {record.seconds:.0f} s in all",
        f"- device: {device.name}, {_gb(device.memory)} GB{f', driver {device.driver}' if device.driver else ''}",
        f"- code: commit {commit}; Python {where.python}, {packages}",
        f"- weights: random, in {'tiny' if record.small else 'the published'} shapes; `README.md` beside this page "
        "says what is measured and how",
    ]
    for part in record.parts:
        if part.name != "plan":
            lines += ["", f"## {part.title}", "", *_part(record, part)]
    return "\n".join([*lines, "", *_table_2(record)]) + "\n"


def _part(record: Record, part: PartRecord) -> list[str]:
    timed = [case for case in part.cases if case.seconds]
    lines = _grid(_HEADER, [_row(record, part, case) for case in timed]) if timed else []
    named = [f"- {case.name}: {one.what} {one.value:.3g}" for case in timed for one in case.deviations]
    missing = [f"- {case.name}: {case.outcome}, {case.reason}" for case in part.cases if not case.seconds]
    blocks = [block for block in (lines, named, missing) if block]
    return [line for block in blocks for line in (*block, "")][:-1]


def _row(record: Record, part: PartRecord, case: Case) -> list[str]:
    planned = record.planned(part.name, case.name)
    known, rate = case.flops > 0, record.matmul_rate
    return [
        case.name,
        f"{case.median:.4g}",
        f"{min(case.seconds):.4g} to {max(case.seconds):.4g}" if len(case.seconds) > 1 else "once",
        f"{case.images / case.median:.4g}" if case.images else _NONE,
        f"{case.rate / 1e12:.4g}" if known else _NONE,
        f"{case.rate / rate:.1%}" if known and rate else _NONE,
        _gb(case.allocated),
        _gb(case.reserved),
        _gb(planned),
        f"{case.allocated / planned:.3f}" if case.allocated and planned else _NONE,
    ]


def _table_2(record: Record) -> list[str]:
    """The published figures beside ours, at each batch size."""
    cases = {case.name: case for part in record.parts for case in part.cases if part.name == "rewards"}
    rows = [_published(row) for row in TABLE_2]
    for row in TABLE_2:
        rows += [_ours(case) for path in row.ours for case in cases.values() if _is_of(case, path)]
    header = ("path", "ms per image", "peak GB", "source")
    return [
        "## Table 2 of arXiv 2606.23626 next to ours",
        "",
        "The paper does not say on what hardware, at which size, batch or precision. By time and memory, its pixel row",
        "of DiT-Reward holds the text encoders; here texts are encoded once per prompt, which is not counted.",
        "",
        *_grid(header, rows),
    ]


def _published(row: PublishedRow) -> list[str]:
    return [row.model, f"{row.milliseconds:g}", f"{row.gigabytes:g}", "published"]


def _ours(case: Case) -> list[str]:
    return [case.name, f"{1000 * case.median / case.images:.4g}", _gb(case.allocated), "measured here"]


def _is_of(case: Case, path: str) -> bool:
    return bool(case.seconds) and case.name == case_names.reward(path, case.images)


def _gb(size: int | None) -> str:
    return _NONE if size is None else f"{size / 1e9:.4g}"


def _grid(header: Sequence[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
