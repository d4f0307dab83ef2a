"""The parts of the benchmark in the order they run, each with the time that it may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part: `run` of its module gives the cases."""

    name: str
    title: str
    module: str  # imported by the part's own process alone
    seconds: float


def _part(name: str, title: str, module: str, seconds: float) -> Part:
    return Part(name=name, title=title, module=f"experiments.benchmarks.gpu.{module}", seconds=seconds)


# What compiles comes last: it may take all the time that is left.
PARTS = (
    _part("matmul", "A large matrix product in bfloat16", "matmul", 40),
    _part("rollout", "Rollout of one group", "rollout", 120),
    _part("update", "Update on the group", "update", 140),
    _part("rewards", "Reward paths", "reward_paths", 110),
    _part("zero3", "DiT-Reward plain and as ZeRO-3 of one rank", "zero3", 75),
    _part("deviation", "Ratio before the first update, in bfloat16", "deviation", 150),
)
# Beside the others, as it needs no GPU.
PLAN = _part("plan", "Computed by flowrl plan", "planned", 600)
