"""The job after the array: the report on the runs that are there, also where some have failed.

python -m flowrl.slurm.afterwards MANIFEST
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from flowrl.base.errors import UserError
from flowrl.matrix.manifest import read_manifest
from flowrl.matrix.progress import begun


def report_commands(manifest: Path) -> list[list[str]]:
    """The commands that write the report: of each seed the first arm beside each other one, where both have begun."""
    there = [element for element in read_manifest(manifest) if begun(element.dir)]
    commands = []
    for seed in dict.fromkeys(element.seed for element in there):
        first, *others = (element for element in there if element.seed == seed)
        for other in others:
            page = manifest.parent / f"compare-{first.name}-{other.name}.html"
            words = ["report", str(first.dir), "--compare", str(other.dir), "--out", str(page)]
            commands.append([sys.executable, "-m", "flowrl", *words])
    return commands


def main(words: list[str]) -> int:
    """Write the report; exits with the largest exit code of its commands, or 1 where there is nothing to report."""
    try:
        commands = report_commands(Path(words[0]))
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    if not commands:
        sys.stderr.write(f"error: {words[0]}: no two runs of a seed have begun, so that there is nothing to compare\n")
        return 1
    return max(subprocess.run(command).returncode for command in commands)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
