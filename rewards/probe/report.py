"""A probe as files: result.json, a page of Markdown tables, and the plots."""

from __future__ import annotations

import statistics
from pathlib import Path

from flowrl.base.atomic_file import write_atomically
from rewards.evaluation.result import Difference
from rewards.evaluation.table import NOTHING, table
from rewards.probe.plots import draw_depth, draw_pairs, draw_similarity
from rewards.probe.result import ProbeFigure, ProbeResult, layer_label

RESULT, PAGE = "result.json", "table.md"
DEPTH, PAIRS, SIMILARITY = "depth.png", "pairs.png", "similarity.png"
_MOST_PAIRS = 15  # rows of the table; result.json has all


def write_report(result: ProbeResult, out: Path) -> None:
    """Write result.json, table.md, depth.png, similarity.png and, where pairs were probed, pairs.png in `out`."""
    files = {
        RESULT: result.to_json().encode(),
        PAGE: markdown(result).encode(),
        DEPTH: draw_depth(result),
        SIMILARITY: draw_similarity(result.similarity),
    }
    if result.pairs:
        files[PAIRS] = draw_pairs(result)
    for name, content in files.items():
        write_atomically(out / name, content)


def markdown(result: ProbeResult) -> str:
    """The whole page; accuracies in percent with 95 % bootstrap intervals over prompts."""
    parts = ["# Layers of a frozen backbone as reward features", _reading(result), singles_table(result)]
    if result.pairs:
        ranked = sorted(result.pairs, key=lambda one: -one.accuracy)
        shown = f"The best {_MOST_PAIRS} of {len(ranked)}." if len(ranked) > _MOST_PAIRS else "The best first."
        head = ["layers", "accuracy, %", "spread over seeds", "best in"]
        parts += ["## Pairs of layers", shown, table(head, [_row(one) for one in ranked[:_MOST_PAIRS]])]
    if result.differences:
        note = "On the same pairs. The best was chosen on them too, so these gains are somewhat too large."
        rows = [_difference(one) for one in result.differences]
        parts += ["## Differences", note, table(["layers", "points", "share of draws above 0"], rows)]
    parts += ["## Similarity of layers", _similarity(result)]
    return "\n\n".join(parts) + "\n"


def singles_table(result: ProbeResult) -> str:
    """A row for each layer, by depth."""
    sources = list(dict.fromkeys(name for one in result.singles for name in one.by_source))
    sources = sources if len(sources) > 1 else []
    head = ["layer", "accuracy, %", "spread over seeds", "best in", *(f"{name} pairs, %" for name in sources)]
    rows = [
        [*_row(one), *(f"{100 * one.by_source[name]:.1f}" if name in one.by_source else NOTHING for name in sources)]
        for one in result.singles
    ]
    return table(head, rows)


def _reading(result: ProbeResult) -> str:
    shape = f"with hidden widths {list(result.head_dims)}" if result.head_dims else "linear"
    return (
        f"Backbone {result.backbone} ({result.init} weights), frozen, sigma {result.sigma:g}. Heads: {shape}, "
        f"{result.steps} steps on {result.num_train_pairs} pairs, {len(result.singles[0].by_seed)} seeds. Percent of "
        f"{result.num_pairs} validation pairs of {result.num_prompts} prompts ordered as labelled, mean over seeds, "
        f"[95 % interval] from {result.draws} bootstrap draws of prompts; the standard deviation over seeds, in "
        'points; "best in" is the share of the draws in which the row is the best of its table. Layer "input" is the '
        "patch embeddings that enter block 0."
    )


def _row(one: ProbeFigure) -> list[str]:
    accuracy = f"{100 * one.accuracy:.1f} [{100 * one.interval.low:.1f}, {100 * one.interval.high:.1f}]"
    spread = f"{100 * statistics.stdev(one.by_seed):.2f}" if len(one.by_seed) > 1 else NOTHING
    return [one.label, accuracy, spread, f"{100 * one.best_share:.0f} %"]


def _difference(one: Difference) -> list[str]:
    low, high = (f"{100 * end:+.1f}" for end in (one.paired.interval.low, one.paired.interval.high))
    points = f"{100 * one.paired.difference:+.1f} [{low}, {high}]"
    return [f"{one.first} - {one.second}", points, f"{one.paired.probability:.3f}"]


def _similarity(result: ProbeResult) -> str:
    found = result.similarity
    labels = [layer_label(layer) for layer in found.layers]
    rows = [
        [label, *(f"{mean:.2f} ({std:.3f})" for mean, std in zip(means, stds, strict=True))]
        for label, means, stds in zip(labels, found.mean, found.std, strict=True)
    ]
    note = "Cosine of centred pooled features: the mean over prompts (the standard deviation over prompts)."
    return f"{note}\n\n{table(['layer', *labels], rows)}"
