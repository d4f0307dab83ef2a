"""The command `flowrl reward eval`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from flowrl.cli.verb import Verb, add_overrides


def _eval_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", type=Path, help="a YAML file: rewards and benchmarks")
    add_overrides(parser, "device=cuda", entry="benchmarks.0.max_comparisons=500")


def _eval(args: argparse.Namespace) -> int:
    from flowrl.config_kinds import REWARD_EVALUATION, load_as

    config = load_as(REWARD_EVALUATION, args.config, args.overrides)
    from flowrl.cli.evaluation_parts import evaluation_parts
    from rewards.evaluation.run import PAGE, run
    from rewards.evaluation.table import main_table

    parts = evaluation_parts(config)
    for remark in parts.remarks:
        print(f"reward eval: {remark}", file=sys.stderr)
    result = run(config, make=parts.make, target=parts.target, inputs=parts.inputs, remarks=parts.remarks)
    print(main_table(result))
    print(Path(config.out) / PAGE)
    return 0


REWARD_EVAL_VERBS = {
    "reward eval": Verb(
        summary="measure how often rewards agree with people, side by side on the same pairs, or go on with it",
        example="flowrl reward eval configs/reward/eval/benchmarks.yaml device=cuda out=runs/table-1",
        add_arguments=_eval_arguments,
        run=_eval,
    ),
}
