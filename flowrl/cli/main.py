"""Finds the command that was asked for and runs it; what goes wrong is one line and an exit code."""

from __future__ import annotations

import argparse
import difflib
import errno
import os
import sys
import traceback
from collections.abc import Sequence

from flowrl import __version__
from flowrl.base.errors import UserError
from flowrl.base.library_noise import hush_before_imports
from flowrl.base.signals import Stopped
from flowrl.cli.doctor import DOCTOR_VERBS
from flowrl.cli.fetch import FETCH_VERBS
from flowrl.cli.judge import JUDGE_VERBS
from flowrl.cli.matrix import MATRIX_VERBS
from flowrl.cli.plan import PLAN_VERBS
from flowrl.cli.pocket import POCKET_VERBS
from flowrl.cli.reward_eval import REWARD_EVAL_VERBS
from flowrl.cli.reward_probe import PROBE_VERBS
from flowrl.cli.reward_training import REWARD_VERBS
from flowrl.cli.reward_use import REWARD_USE_VERBS
from flowrl.cli.runs import RUN_VERBS
from flowrl.cli.score import SCORE_VERBS


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 for fault found, 2 for wrong input, 128 + n for signal n."""
    hush_before_imports()
    try:
        return _dispatch(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        print("flowrl: interrupted", file=sys.stderr)
        return 130
    except Stopped as stop:
        print(f"flowrl: {stop}", file=sys.stderr)
        return stop.exit_code
    except BrokenPipeError:  # the reader of our output has left, as in `flowrl show ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except UserError as error:
        return _fail(str(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        where = f" to {error.filename}" if error.filename else ""
        return _fail(f"cannot write{where}: {error.strerror}; make room, then go on with --resume, or start again")


def _fail(message: str) -> int:
    print(f"flowrl: error: {message}", file=sys.stderr)
    return 2


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview(), file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        print(f"flowrl {__version__}")
        return 0
    name, arguments = words[0], words[1:]
    if family := [verb.removeprefix(f"{name} ") for verb in VERBS if verb.startswith(f"{name} ")]:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(_overview(name), file=sys.stdout if arguments else sys.stderr)
            return 0 if arguments else 2
        if arguments[0] not in family:
            raise UserError(f"{name}: unknown command {arguments[0]!r}; {_closest(arguments[0], family)}")
        name, arguments = f"{name} {arguments[0]}", arguments[1:]
    if name not in VERBS:
        raise UserError(f"unknown command {name!r}; {_closest(name, [verb.split()[0] for verb in VERBS])}")
    verb = VERBS[name]
    parser = argparse.ArgumentParser(
        prog=f"flowrl {name}",
        description=verb.summary,
        epilog=f"example:\n  {verb.example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_arguments(parser)
    parser.add_argument("--traceback", action="store_true", help="before an error, show where in the code it came from")
    # Intermixed, so that overrides may stand before and after options.
    args = parser.parse_intermixed_args(arguments)
    try:
        return verb.run(args)
    except UserError:
        if args.traceback:
            traceback.print_exc()
        raise


def _closest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else "see flowrl --help"


def _overview(family: str = "") -> str:
    """What there is to say; of all commands, or of those whose first word is `family`."""
    verbs = {name: verb for name, verb in VERBS.items() if name.startswith(family)}
    width = max(map(len, verbs)) + 2
    return "\n".join(
        [
            f"usage: flowrl {f'{family} ' if family else ''}COMMAND ...",
            "",
            "Online RL fine-tuning of text-to-image flow models.",
            "",
            *(f"  {name:<{width}}{verb.summary}" for name, verb in verbs.items()),
            "",
            "`flowrl COMMAND --help` says more."
            + ("" if family else " A first run, on two CPU cores:\n  flowrl train configs/pocket/ditreward.yaml"),
        ]
    )


VERBS = {
    **RUN_VERBS,
    **MATRIX_VERBS,
    **PLAN_VERBS,
    **FETCH_VERBS,
    **DOCTOR_VERBS,
    **REWARD_VERBS,
    **PROBE_VERBS,
    **REWARD_EVAL_VERBS,
    **REWARD_USE_VERBS,
    **SCORE_VERBS,
    **JUDGE_VERBS,
    **POCKET_VERBS,
}
