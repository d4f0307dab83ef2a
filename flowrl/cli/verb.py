"""What a command of the command line is."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flowrl.base.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Verb:
    """One command: what its help says, the arguments it takes, and what it does."""

    summary: str
    example: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def check_output(file: Path | None) -> None:
    """Raise UserError when a file cannot be written there, before the work that it would hold is done."""
    if file is not None and not (file.parent.is_dir() and (file.is_file() or not file.exists())):
        raise UserError(f"--out {file}: must be a file in a folder that exists")


def add_overrides(parser: argparse.ArgumentParser, example: str, *, entry: str = "") -> None:
    """Let `key=value` words follow a config; `entry` is an example for one of its lists, where it has any."""
    of_a_list = f"; of a list an entry by its number, from 0, such as {entry}, or the whole" if entry else ""
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help=f"a key of the config and its value, such as {example}{of_a_list}",
    )


def add_prompts(parser: argparse.ArgumentParser) -> None:
    """Let the prompts of images be given, in a file or as one for all."""
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument(
        "--prompts",
        metavar="FILE",
        type=Path,
        help="one prompt per line, in the order of the images; or a .jsonl or .csv file with file and prompt",
    )
    prompts.add_argument("--prompt", metavar="TEXT", help="the prompt of all images")


def config_and_overrides(args: argparse.Namespace) -> tuple[Path | None, list[str]]:
    """The config and the overrides of a command whose config may be left out: then an override stands first."""
    if args.config and "=" in args.config and not Path(args.config).exists():
        return None, [args.config, *args.overrides]
    return Path(args.config) if args.config else None, list(args.overrides)
