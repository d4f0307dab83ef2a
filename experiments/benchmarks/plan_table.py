"""Prints the README's table of the shipped configurations of SD3.5, as `flowrl plan` computes it.

python -m experiments.benchmarks.plan_table
"""

from __future__ import annotations

from pathlib import Path

from flowrl.config import load
from flowrl.plan import EFFICIENCY
from flowrl.plan.gpus import find_gpu
from flowrl.plan.run_plan import run_plan

ROOT = Path(__file__).parents[2]
PROFILES = [f"sd35-{model}{size}" for model in ("large", "medium") for size in ("", "-8gpu", "-1gpu")]
HEADER = """\
| configuration | GPUs | placement | memory per GPU | step | images/s | |
|---|---|---|---|---|---|---|"""


def row(profile: str) -> str:
    """The line of a profile's run on DiT-Reward."""
    config = load(ROOT / "configs" / profile / "ditreward.yaml")
    plan, gpu = run_plan(config), find_gpu("h100")
    seconds = plan.step.seconds(EFFICIENCY * gpu.flops)
    memory = max(kind.peak for kind in plan.devices)
    placement = config.placement.mode + (", in turn" if config.placement.offload else "")
    return (
        f"| `{profile}` | {plan.gpus} | {placement} | {memory / 1e9:.0f} GB | {seconds:,.0f} s | "
        f"{plan.work.samples / seconds:.2f} | computed |"
    )


def table() -> str:
    """The whole table."""
    return "\n".join([HEADER, *map(row, PROFILES)])


if __name__ == "__main__":
    print(table())
