"""The command `flowrl doctor`."""

from __future__ import annotations

import argparse
import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from flowrl.base.errors import UserError
from flowrl.cli.verb import Verb, add_overrides, config_and_overrides

if TYPE_CHECKING:
    from flowrl.config import RunConfig


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="the YAML file of a run; without it the machine")
    add_overrides(parser, "placement.mode=local", entry="rewards.train.0.weight=2")
    parser.add_argument(
        "--nodes",
        metavar="HOST,HOST",
        default="",
        help="other machines of the run, which ssh, or the command FLOWRL_SSH, reaches by these names",
    )
    parser.add_argument(
        "--address", metavar="HOST:PORT", default="", help="a Ray cluster; by default placement.ray_address of CONFIG"
    )
    parser.add_argument("--no-step", action="store_true", help="leave out the step of training, which takes longest")
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")


def _doctor(args: argparse.Namespace) -> int:
    path, overrides = config_and_overrides(args)
    if path is None and overrides:
        raise UserError(f"doctor: {overrides[0]} overrides a key of a config; name the config before it")
    from flowrl.doctor.examination import Request, examination
    from flowrl.doctor.finding import Entry
    from flowrl.doctor.page import as_json, lines, verdict

    if args.traceback:
        logging.basicConfig()
        logging.getLogger("flowrl.doctor").setLevel(logging.DEBUG)
    run = None if path is None else shlex.join([str(path), *overrides])
    request = Request(
        config=None if path is None else _config(path, overrides),
        run=run or "CONFIG",
        hosts=tuple(filter(None, (host.strip() for host in args.nodes.split(",")))),
        address=args.address,
        step=not args.no_step,
    )
    entries: list[Entry] = []
    for entry in examination(request):
        if not args.json:  # as it is found: some checks take a while
            print(lines(entry, entries[-1] if entries else None), flush=True)
        entries.append(entry)
    print(as_json(entries, run) if args.json else f"\n{verdict(entries, run)}")
    return 1 if any(entry.finding.verdict == "problem" for entry in entries) else 0


def _config(path: Path, overrides: list[str]) -> RunConfig:
    from flowrl.config_kinds import RUN, load_as

    config: RunConfig = load_as(RUN, path, overrides)
    return config


DOCTOR_VERBS = {
    "doctor": Verb(
        summary="examine this machine, and whether a run can start on it; exit 1 if something is in the way",
        example="flowrl doctor\n  flowrl doctor configs/sd35-large/ditreward.yaml --nodes node2,node3",
        add_arguments=_doctor_arguments,
        run=_doctor,
    ),
}
