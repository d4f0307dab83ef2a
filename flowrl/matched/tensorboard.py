"""The arms of an experiment for TensorBoard: a run per arm with the mean over seeds and the lowest and highest of them.

Their charts lie over each other in the tab "Custom Scalars".
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from flowrl.matched.comparison import Findings
from flowrl.matched.curves import measure_charts, training_charts
from flowrl.report.charts import Chart

_GROUPS = ("held out", "while training")


def write_tensorboard(found: Findings, folder: Path) -> None:
    """Write a folder per arm into `folder`, replacing what is there: `tensorboard --logdir FOLDER` shows them."""
    from torch.utils.tensorboard import SummaryWriter  # slow to import, and needed here alone

    shutil.rmtree(folder, ignore_errors=True)
    charts = dict(zip(_GROUPS, (measure_charts(found, "steps"), training_charts(found.record, "steps")), strict=True))
    layout = {
        group: {chart.title: ["Margin", _tags(group, chart)] for chart in reversed(some)}  # it shows the last one first
        for group, some in charts.items()
    }
    for arm in found.record.arms:
        with SummaryWriter(str(folder / arm.name)) as writer:
            writer.add_custom_scalars(layout)
            for group, some in charts.items():
                for chart in some:
                    for step, *values in _values(chart, arm.name):
                        for tag, value in zip(_tags(group, chart), values, strict=True):
                            writer.add_scalar(tag, value, int(step))


def _tags(group: str, chart: Chart) -> list[str]:
    return [f"{group}/{chart.title}, {what}" for what in ("mean of seeds", "lowest seed", "highest seed")]


def _values(chart: Chart, arm: str) -> Iterator[tuple[float, float, float, float]]:
    """Step, mean, lowest and highest seed of an arm's line; with one seed all three are the same."""
    line = next(one for one in chart.series if one.name == arm)
    band = line.band or [(value, value) for _, value in line.points]
    for (step, mean), (low, high) in zip(line.points, band, strict=True):
        yield step, mean, low, high
