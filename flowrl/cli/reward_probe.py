"""The command `flowrl reward probe`."""

from __future__ import annotations

import argparse
from pathlib import Path

from flowrl.cli.verb import Verb, add_overrides


def _probe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", type=Path, help="a YAML file: backbone, preference set, heads")
    add_overrides(parser, "head.steps=500")


def _probe(args: argparse.Namespace) -> int:
    from flowrl.config_kinds import REWARD_PROBE, load_as

    config = load_as(REWARD_PROBE, args.config, args.overrides)
    from rewards.probe.report import PAGE, singles_table
    from rewards.probe.run import probe

    result = probe(config)
    print(singles_table(result))
    if result.best_pair is not None:
        print(f"best pair: {result.best_pair.label}, {100 * result.best_pair.accuracy:.1f} %")
    print(Path(config.out) / PAGE)
    return 0


PROBE_VERBS = {
    "reward probe": Verb(
        summary="train small heads on single layers and pairs of layers of a frozen backbone: which know most",
        example="flowrl reward probe configs/reward/pocket/probe.yaml head.seeds=1",
        add_arguments=_probe_arguments,
        run=_probe,
    ),
}
