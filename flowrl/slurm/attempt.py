"""What `launch/slurm/element.sh` asks: whether a run may be started once more, and whether it is finished.

python -m flowrl.slurm.attempt begin MANIFEST INDEX RESTARTS MOST
python -m flowrl.slurm.attempt state MANIFEST INDEX
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from flowrl.base.atomic_file import write_atomically
from flowrl.base.errors import UserError
from flowrl.matrix.manifest import Element, element_of
from flowrl.matrix.progress import finished, steps_done


def begin(manifest: Path, index: int, *, restart: int, most: int) -> str:
    """Keep the step at which an attempt begins, and say it.

    Raises UserError after too many restarts, and where the attempt before has got no further: the next would not.
    """
    element = element_of(manifest, index)
    step = steps_done(element.dir)
    kept = manifest.parent / "slurm" / f"attempt-{index}.json"
    if restart:
        before = _step_before(kept)
        if before is not None and step <= before and not _is_finished(element):
            raise UserError(
                f"{element.dir}: no progress between two restarts: both began after step {step}; the time before the "
                "signal must be enough for one step, and grace_s for one step, an evaluation and a checkpoint: raise "
                "time_limit or grace_s, or look for an error in the output above, then submit again"
            )
        if restart > most:
            raise UserError(f"{element.dir}: restarted {restart} times; max_restarts = {most} allows no more")
    write_atomically(kept, json.dumps({"restart": restart, "step": step}).encode())
    return f"{element.name}: attempt {restart + 1}, after step {step}"


def state(manifest: Path, index: int) -> str:
    """Of a run: "finished" or "unfinished"."""
    return "finished" if _is_finished(element_of(manifest, index)) else "unfinished"


def _is_finished(element: Element) -> bool:
    return finished(element.dir, element.load().run.steps)


def _step_before(kept: Path) -> int | None:
    """The step at which the attempt before began; None where it did not get as far as to keep it."""
    try:
        return int(json.loads(kept.read_text(encoding="utf-8"))["step"])
    except FileNotFoundError:
        return None


def main(words: list[str]) -> int:
    """Answer on stdout; exits 2 with an error on stderr."""
    verb, manifest, index, *numbers = words
    try:
        if verb == "begin":
            restart, most = map(int, numbers)
            answer = begin(Path(manifest), int(index), restart=restart, most=most)
        else:
            answer = state(Path(manifest), int(index))
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{answer}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
