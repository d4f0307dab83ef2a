"""What an experiment will take: its runs and steps, and where GPUs are asked for, their memory and hours."""

from __future__ import annotations

from collections.abc import Sequence

from flowrl.base.amounts import count, size
from flowrl.matrix.experiment import Experiment, Run
from flowrl.plan import EFFICIENCY
from flowrl.plan.gpus import Gpu, find_gpu
from flowrl.plan.page import time_of
from flowrl.plan.run_plan import RunPlan, run_plan
from flowrl.plan.verdict import Verdict, judge


def outlook(experiment: Experiment, runs: Sequence[Run], gpu: str) -> str:
    """Some lines about all runs, and one about each arm."""
    arms, seeds = list(experiment.arms), len(experiment.seeds)
    steps = sum(run.config.run.steps for run in runs)
    lines = [
        f"{count(len(runs), 'run')}: {count(len(arms), 'arm')} ({', '.join(arms)}) with {count(seeds, 'seed')}, "
        f"{count(steps, 'step')} in all; arms may differ in {', '.join(experiment.differ)} and in nothing else",
    ]
    hours = 0.0
    for run in runs[: len(arms)]:
        if run.config.placement.device == "cpu":
            lines.append(
                f"  {run.arm}: on the CPU, {count(run.config.run.steps, 'step')}; the first will tell the time"
            )
            continue
        verdict, plan = _verdict(run, find_gpu(gpu))
        fits = "fits" if verdict.fits else f"DOES NOT FIT, see flowrl plan --gpu {gpu}"
        peak = size(plan.devices[0].peak)
        lines.append(
            f"  {run.arm}: {plan.gpus} x {verdict.gpu.title}, {peak} of each, {fits}; a run "
            f"{time_of(plan, verdict.rate)}, computed"
        )
        hours += seeds * plan.gpus * plan.seconds(verdict.rate) / 3600
    if hours:
        lines.append(f"  in all {hours:,.0f} GPU hours, if {100 * EFFICIENCY:.0f} % of the peak rate are reached")
    return "\n".join(lines) + "\n"


def _verdict(run: Run, gpu: Gpu) -> tuple[Verdict, RunPlan]:
    plan = run_plan(run.config)
    return judge(run.config, plan, gpu, share=EFFICIENCY), plan
