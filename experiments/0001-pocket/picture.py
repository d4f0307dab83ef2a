"""Draws the README's picture from pocket runs of both arms: samples before and after, and the held-out curves.

python experiments/0001-pocket/picture.py experiments/0001-pocket/picture.png runs/pocket-*-[012]
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from flowrl.config import load
from flowrl.metrics import read_metrics
from flowrl.samples import read_sheet, sheet_steps

_COLUMNS = 6
_CURVES = {"eval/dit_reward/mean": "DiT-Reward", "eval/hpsv3/mean": "HPSv3", "eval/oracle/mean": "oracle (the truth)"}
_ARMS = {"dit_reward": ("DiT-Reward", "#0072b2"), "hpsv3": ("HPSv3", "#d55e00")}


def main() -> None:
    """One figure: rows of samples above, the held-out curves of every run below."""
    out, runs = Path(sys.argv[1]), [Path(argument) for argument in sys.argv[2:]]
    arms = {name: [run for run in runs if load(run / "config.yaml").rewards.train[0].name == name] for name in _ARMS}
    figure = plt.figure(figsize=(10, 7.6), dpi=110, layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.9, 1))
    axes = above.subplots(3, _COLUMNS)
    samples = [run[0] / "samples" for run in arms.values()]
    last = sheet_steps(samples[0])[-1]
    _images(axes[0], samples[0], 0, "before")
    for row, (arm, folder) in zip(axes[1:], zip(_ARMS, samples, strict=True), strict=True):
        _images(row, folder, last, f"{last} steps on\n{_ARMS[arm][0]}")
    panels = below.subplots(1, len(_CURVES))
    for axis, (key, title) in zip(panels, _CURVES.items(), strict=True):
        for arm, (word, colour) in _ARMS.items():
            for run in arms[arm]:
                points = [(line["step"], line[key]) for line in read_metrics(run / "metrics.jsonl") if key in line]
                label = f"trained on {word}" if run is arms[arm][0] else None
                axis.plot(*zip(*points, strict=True), "o-", markersize=3, linewidth=1.4, color=colour, label=label)
        axis.set_title(f"held-out {title}", fontsize=10)
        axis.set_xlabel("step")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    panels[0].legend(fontsize=8, frameon=False)
    figure.savefig(out)


def _images(row: list[Axes], folder: Path, step: int, word: str) -> None:
    """The first image of each of the first prompts."""
    sheet = read_sheet(folder, step)
    assert sheet is not None, (folder, step)
    for column, axis in enumerate(row):
        axis.imshow(sheet.cell(column, 0), interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    row[0].set_ylabel(word, fontsize=10)


if __name__ == "__main__":
    main()
