"""The command `flowrl plan`."""

from __future__ import annotations

import argparse
from pathlib import Path

from flowrl.base.errors import UserError
from flowrl.cli.verb import Verb, add_overrides
from flowrl.plan import EFFICIENCY


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", type=Path, help="the YAML file of a run")
    add_overrides(parser, "rollout.samples_per_forward=4", entry="rewards.train.0.weight=2")
    parser.add_argument("--gpu", metavar="NAME", default="h100", help="the GPU of each actor, such as a100 or h200")
    parser.add_argument(
        "--efficiency",
        metavar="SHARE",
        type=float,
        default=EFFICIENCY,
        help="the share of the GPU's peak rate that is assumed to be reached (%(default)s)",
    )
    parser.add_argument("--gpus", metavar="N", type=int, help="how many there are; by default as many as the run takes")
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")


def _plan(args: argparse.Namespace) -> int:
    from flowrl.config_kinds import RUN, load_as

    if not 0 < args.efficiency <= 1:
        raise UserError(f"--efficiency must lie in (0, 1], got {args.efficiency:g}")
    if args.gpus is not None and args.gpus < 1:
        raise UserError(f"--gpus must be at least 1, got {args.gpus}")
    config = load_as(RUN, args.config, args.overrides)
    from flowrl.plan.gpus import find_gpu
    from flowrl.plan.page import page
    from flowrl.plan.run_plan import run_plan
    from flowrl.plan.verdict import as_json, judge

    gpu = find_gpu(args.gpu)
    plan = run_plan(config)
    verdict = judge(config, plan, gpu, share=args.efficiency, num_gpus=args.gpus)
    print(as_json(plan, verdict) if args.json else page(plan, verdict), end="\n" if args.json else "")
    return 0 if verdict.fits else 1


PLAN_VERBS = {
    "plan": Verb(
        summary="say what a run will need before it starts: memory of each role, time and bytes of a step",
        example="flowrl plan configs/pocket/ditreward.yaml --gpu h100",
        add_arguments=_plan_arguments,
        run=_plan,
    ),
}
