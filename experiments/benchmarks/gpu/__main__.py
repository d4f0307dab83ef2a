"""The command: `python -m experiments.benchmarks.gpu`, from the root of the repository."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments.benchmarks.gpu.bench import run, write
from experiments.benchmarks.gpu.parts import PARTS
from flowrl.base.errors import UserError

_RECORDS = Path(__file__).parents[1]
_TRIALS = Path("build/benchmarks")


def _arguments() -> argparse.Namespace:
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.gpu", description=__doc__)
    parser.add_argument("--small", action="store_true", help="tiny shapes on the CPU: a trial of the benchmark")
    parser.add_argument("--seconds", type=float, default=520.0, help="time for all parts (default: %(default)s)")
    parser.add_argument("--parts", nargs="+", choices=names, default=names, help="those to run (default: all)")
    parser.add_argument("--out", type=Path, help=f"where the record goes (default: this folder; {_TRIALS} for --small)")
    parser.add_argument("--commit", default="", help="of the code, where it lies in no repository")
    return parser.parse_args()


def main() -> int:
    """Measure, write, and say where; 1 with one line where there is no GPU."""
    arguments = _arguments()
    try:
        record = run(
            small=arguments.small, seconds=arguments.seconds, names=tuple(arguments.parts), commit=arguments.commit
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    out = arguments.out or (_TRIALS if arguments.small else _RECORDS)
    for file in write(record, out):
        print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
