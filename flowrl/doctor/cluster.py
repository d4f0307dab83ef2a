"""The reports of all nodes of a Ray cluster: `python -m flowrl.doctor.cluster HOST:PORT PATH ...` prints one a line.

A process of its own, since joining a cluster changes the process that joins, and can hang.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial

from flowrl.actors.group import ask_each_node
from flowrl.base.errors import UserError
from flowrl.doctor.versions import version_report

_TIMEOUT_S = 40.0


def _report(paths: Sequence[str]) -> str:
    return version_report(paths).to_json()


def main(address: str, paths: Sequence[str]) -> int:
    """Print for each node its address, and its report or what went wrong there; returns the exit code."""
    try:
        answers = ask_each_node(partial(_report, paths), address=address, timeout_s=_TIMEOUT_S)
    except (RuntimeError, OSError, ValueError, UserError) as error:  # of Ray; in several lines
        sys.stderr.write(" ".join(str(error).split()) + "\n")
        return 1
    for node, answer in answers:
        failed = isinstance(answer, Exception)
        said = str(answer).strip().splitlines()[-1] if failed else str(answer)
        late = isinstance(answer, TimeoutError)
        sys.stdout.write(json.dumps({"node": node, "failed": failed, "late": late, "said": said}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
