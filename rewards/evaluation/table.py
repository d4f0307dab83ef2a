"""An evaluation as Markdown: the paper's Table 1 with published figures beside ours, then each benchmark in full."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rewards.evaluation.bootstrap import Interval
from rewards.evaluation.published import PUBLISHED, TEST_SETS
from rewards.evaluation.result import BenchmarkResult, EvaluationResult, Figure, ProtocolResult

NOTHING = "-"


def markdown(result: EvaluationResult) -> str:
    """The whole page. Accuracies are in percent with 95 % bootstrap intervals over prompts."""
    parts = ["# Pairwise accuracy of rewards", _reading(result), main_table(result)]
    if notes := _published_notes(result):
        parts += ["## Published figures", notes]
    for benchmark in result.benchmarks:
        parts += [f"## {benchmark.name}", coverage_text(benchmark)]
        for protocol in benchmark.protocols:
            parts += [f"### {benchmark.name}: {protocol.protocol}", *_protocol_parts(protocol)]
    return "\n\n".join(parts) + "\n"


def main_table(result: EvaluationResult) -> str:
    """Models by benchmarks: our rewards under each benchmark's first protocol, then the published figures."""
    head = ["model", "by", *(_column_title(benchmark) for benchmark in result.benchmarks)]
    rows = []
    for reward in result.rewards:
        figures = [_figure_of(benchmark.protocols[0], reward.label) for benchmark in result.benchmarks]
        rows.append([reward.label, "measured here", *map(percent_with_interval, figures)])
    known = {(one.model, one.test_set): one.percent for one in PUBLISHED}
    for model in dict.fromkeys(one.model for one in PUBLISHED):
        cells = [known.get((model, benchmark.test_set)) for benchmark in result.benchmarks]
        if any(cell is not None for cell in cells):
            rows.append([f"*{model}*", "published", *(NOTHING if cell is None else f"*{cell:.1f}*" for cell in cells)])
    return table(head, rows)


def percent_with_interval(figure: Figure) -> str:
    """Such as "76.9 [75.7, 78.1]"; a dash when nothing is counted."""
    return _with_interval(figure.accuracy, figure.interval)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others stand at the right."""
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(_escaped(cell) for cell in line)} |" for line in lines)


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


def coverage_text(benchmark: BenchmarkResult) -> str:
    """How much of a benchmark was used, and what could not be."""
    found = benchmark.coverage
    lines = [
        f"{found.num_comparisons} comparisons, {found.num_pairs} pairs, {found.num_ties} of them ties; "
        f"{found.num_comparable} pairs have scores of all rewards and are counted, ties as each protocol says."
    ]
    if found.num_repeated or found.num_contradicted:
        lines.append(
            f"{found.num_repeated} pairs stand there more than once with the same label, {found.num_contradicted} "
            "stand there with another label too; all of them are in the figures, as the published protocols leave them "
            "in."
        )
    if benchmark.test_set:
        test_set = TEST_SETS[benchmark.test_set]
        lines.append(f"The published figures are of {test_set.data}, taken to be under {test_set.protocol}.")
    if found.skipped_rows:
        lines.append(f"{found.skipped_rows} rows say nothing about a preference and were skipped.")
    for count, named, what in (
        (found.num_bad_rows, found.bad_rows, "rows"),
        (found.num_bad_images, found.bad_images, "images"),
    ):
        if count:
            more = f" and {count - len(named)} more" if count > len(named) else ""
            lines.append(f"{count} {what} cannot be used and are not counted: {'; '.join(named)}{more}.")
    lines += [
        f"{label} gave no finite score to {count} images: their pairs are not counted."
        for label, count in found.unscored.items()
        if count
    ]
    return "\n".join(lines)


def _reading(result: EvaluationResult) -> str:
    return (
        f"Percent of pairs ordered as people did, [95 % interval] from {result.draws} bootstrap draws of prompts (seed "
        f'{result.seed}). Rows "measured here" are of this evaluation, all on the same pairs; rows "published" (in '
        "italics) are copied from papers, on the published test sets and under the protocols given there, and were not "
        "measured here."
    )


def _column_title(benchmark: BenchmarkResult) -> str:
    title = TEST_SETS[benchmark.test_set].title if benchmark.test_set else benchmark.name
    return f"{title} ({benchmark.protocols[0].protocol})"


def _published_notes(result: EvaluationResult) -> str:
    columns = {benchmark.test_set for benchmark in result.benchmarks}
    shown = [one for one in PUBLISHED if one.test_set in columns]
    rows = [[one.model, TEST_SETS[one.test_set].title, f"{one.percent:.1f}", one.source, one.note] for one in shown]
    return table(["model", "test set", "published, %", "source", "note"], rows) if rows else ""


def _protocol_parts(found: ProtocolResult) -> list[str]:
    text = (
        f"{found.definition[0].upper()}{found.definition[1:]}. From: {found.source}. {found.num_pairs} pairs of "
        f"{found.num_prompts} prompts are counted."
    )
    if found.num_ties:
        text += f" Pairs that people tied, {found.num_ties}: {found.ties}."
    with_rule = any(figure.tie_rule for figure in found.figures)
    head = ["reward", "accuracy, %", "equal scores", *(["tie threshold"] if with_rule else [])]
    rows = [
        [figure.label, percent_with_interval(figure), str(figure.equal), *([_rule(figure)] if with_rule else [])]
        for figure in found.figures
    ]
    parts = [text, table(head, rows)]
    if found.by_category:
        labels = [figure.label for figure in found.figures]
        rows = [
            [one.category or "(none)", str(one.num_pairs), *map(percent_with_interval, one.figures)]
            for one in found.by_category
        ]
        parts += ["By category:", table(["category", "pairs", *labels], rows)]
    if found.differences:
        rows = [
            [
                f"{one.first} - {one.second}",
                _with_interval(one.paired.difference, one.paired.interval, sign="+"),
                NOTHING if math.isnan(one.paired.probability) else f"{one.paired.probability:.3f}",
            ]
            for one in found.differences
        ]
        parts += ["Differences on the same pairs:", table(["rewards", "points", "share of draws above 0"], rows)]
    return parts


def _rule(figure: Figure) -> str:
    rule = figure.tie_rule
    if rule is None:
        return NOTHING
    if rule.measure == "score":
        return f"|s0 - s1| <= {rule.threshold:.4g}"
    return f"|p0 - p1| <= {rule.threshold:g}, scale {rule.scale:g}"


def _with_interval(value: float, found: Interval, *, sign: str = "") -> str:
    if math.isnan(value):
        return NOTHING
    low, high = (f"{100 * end:{sign}.1f}" for end in (found.low, found.high))
    return f"{100 * value:{sign}.1f} [{low}, {high}]"


def _figure_of(found: ProtocolResult, label: str) -> Figure:
    return next(figure for figure in found.figures if figure.label == label)
