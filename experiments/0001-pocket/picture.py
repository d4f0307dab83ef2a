"""Draws the README's picture from pocket runs of one arm: the same prompts and noise before and after, and the curves.

python experiments/0001-pocket/picture.py experiments/0001-pocket/picture.png runs/pocket-ditreward-[012]
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from flowrl.metrics import read_metrics
from flowrl.samples import read_sheet, sheet_steps

_COLUMNS = 6
_CURVES = {"eval/dit_reward/mean": "DiT-Reward (trained on)", "eval/hpsv3/mean": "HPSv3 (watched)"}
_COLOURS = ("#0072b2", "#d55e00")


def main() -> None:
    """One figure: two rows of samples above, the held-out curves of every run below."""
    out, runs = Path(sys.argv[1]), [Path(argument) for argument in sys.argv[2:]]
    steps = sheet_steps(runs[0] / "samples")
    figure = plt.figure(figsize=(10, 6.2), dpi=110, layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.25, 1))
    axes = above.subplots(2, _COLUMNS)
    for row, (step, word) in enumerate(((steps[0], "before"), (steps[-1], f"after {steps[-1]} steps"))):
        sheet = read_sheet(runs[0] / "samples", step)
        assert sheet is not None, step
        for column in range(_COLUMNS):
            axis = axes[row, column]
            axis.imshow(sheet.cell(column, 0), interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
        axes[row, 0].set_ylabel(word, fontsize=11)
    for axis, (key, title), colour in zip(below.subplots(1, 2), _CURVES.items(), _COLOURS, strict=True):
        for run in runs:
            points = [(line["step"], line[key]) for line in read_metrics(run / "metrics.jsonl") if key in line]
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3.5, linewidth=1.6, color=colour, alpha=0.8)
        axis.set_title(f"held-out {title}, {len(runs)} seed{'s' * (len(runs) > 1)}", fontsize=10)
        axis.set_xlabel("step")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(out)


if __name__ == "__main__":
    main()
