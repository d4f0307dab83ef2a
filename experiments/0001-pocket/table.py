"""Prints, for each run directory given, how every held-out score moved: a Markdown table."""

from __future__ import annotations

import sys
from pathlib import Path

from flowrl.metrics import read_metrics


def row(run: Path) -> list[str]:
    """The gains of one run, with the paired standard error of each."""
    last = [line for line in read_metrics(run / "metrics.jsonl") if any(key.endswith("/gain") for key in line)][-1]
    names = sorted(key.split("/")[1] for key in last if key.endswith("/gain"))
    steps = [line["time/step_s"] for line in read_metrics(run / "metrics.jsonl") if "time/step_s" in line]
    gains = [f"{last[f'eval/{name}/gain']:+.4f} ± {last[f'eval/{name}/gain_sem']:.4f}" for name in names]
    return [run.name, str(int(last["step"])), f"{sum(steps) / len(steps):.1f}", *gains, *names]


def main() -> None:
    """One row per run; columns are the rewards in alphabetical order."""
    rows = [row(Path(argument)) for argument in sys.argv[1:]]
    width = (len(rows[0]) - 3) // 2
    header = ["run", "steps", "s / step", *rows[0][3 + width :]]
    lines = [header, ["---"] * len(header), *[line[: 3 + width] for line in rows]]
    sys.stdout.write("".join("| " + " | ".join(line) + " |\n" for line in lines))


if __name__ == "__main__":
    main()
