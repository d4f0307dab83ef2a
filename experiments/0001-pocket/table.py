"""Prints how every held-out score moved in each run given: a Markdown table with a column per run.

python experiments/0001-pocket/table.py runs/pocket-*-[012]
"""

from __future__ import annotations

import sys
from pathlib import Path

from flowrl.metrics import read_metrics

_SCORES = ("dit_reward", "hpsv3", "oracle")
_PARTS = ("attributes", "relation", "shape", "cleanliness")


def main() -> None:
    """Gains with the standard error of the mean paired by prompt; diversity at the start and at the end."""
    runs = [Path(argument) for argument in sys.argv[1:]]
    logs = [list(read_metrics(run / "metrics.jsonl")) for run in runs]
    first, last = [log[0] for log in logs], [log[-1] for log in logs]
    rows = [
        ["", *(run.name for run in runs)],
        ["---"] * (1 + len(runs)),
        ["steps", *(f"{line['step']}" for line in last)],
    ]
    for name in (*_SCORES, *(f"oracle_{part}" for part in _PARTS)):
        digits = 3 if name.startswith("oracle") else 2
        gains = [(line[f"eval/{name}/gain"], line[f"eval/{name}/gain_sem"]) for line in last]
        rows.append([name, *(f"{gain:+.{digits}f} ± {error:.{digits}f}" for gain, error in gains)])
    key = "eval/diversity/mean"
    rows.append(["diversity", *(f"{one[key]:.2f} to {two[key]:.2f}" for one, two in zip(first, last, strict=True))])
    steps = [[line["time/step_s"] for line in log if "time/step_s" in line] for log in logs]
    rows.append(["s / step", *(f"{sum(times) / len(times):.1f}" for times in steps)])
    rows.append(["largest ratio deviation", *(_worst(log) for log in logs)])
    sys.stdout.write("".join("| " + " | ".join(row) + " |\n" for row in rows))


def _worst(log: list[dict[str, float]]) -> str:
    return f"{max(line['policy/ratio_absdev_max'] for line in log if 'policy/ratio_absdev_max' in line):g}"


if __name__ == "__main__":
    main()
