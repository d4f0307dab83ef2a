"""Hands an experiment to SLURM."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flowrl.base.atomic_file import write_atomically
from flowrl.base.errors import UserError
from flowrl.matrix.manifest import read_manifest
from flowrl.matrix.progress import finished
from flowrl.slurm.job import Job, job_for
from flowrl.slurm.lint import problems
from flowrl.slurm.scripts import IN_CONTAINER, Places, Scripts, render
from flowrl.slurm.site import Site

_ELEMENT = Path("launch") / "slurm" / "element.sh"
_AFTER = "ARRAY_JOB_ID"  # stands for what the first call of sbatch says


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What is to be submitted: the scripts, each with its file, and where they go."""

    job: Job
    scripts: Scripts
    places: Places

    def files(self) -> Iterator[tuple[Path, str]]:
        """Every file and its text."""
        yield self.places.folder / "array.sbatch", self.scripts.array
        yield self.places.folder / "report.sbatch", self.scripts.report
        if self.scripts.container:
            for name in IN_CONTAINER:
                yield self.places.container / name, self.scripts.container

    def call(self, name: str, *options: str) -> list[str]:
        """The call of sbatch with a script."""
        return ["sbatch", "--parsable", *options, str(self.places.folder / name)]

    def shown(self) -> str:
        """The files and the calls, as a person reads them; both files can be handed to sbatch as they are."""
        texts = [f"==> {path}\n{text}" for path, text in self.files()]
        calls = [self.call("array.sbatch"), self.call("report.sbatch", f"--dependency=afterany:{_AFTER}")]
        return "\n".join([*texts, *(f"$ {shlex.join(call)}" for call in calls)]) + "\n"


def prepare(manifest: Path, site: Site) -> Submission:
    """The jobs for the runs of a manifest that are not finished; nothing is written.

    Raises UserError when all are finished, or when this is not the folder of a checkout.
    """
    if not _ELEMENT.is_file():
        raise UserError(f"{_ELEMENT}: not here; call this in the folder of flowrl's checkout, which all nodes share")
    loaded = [(element, element.load()) for element in read_manifest(manifest)]
    left = [(element, config) for element, config in loaded if not finished(element.dir, config.run.steps)]
    if not left:
        raise UserError(f"{manifest}: all runs are finished; flowrl report shows them")
    places = Places(checkout=Path.cwd(), manifest=manifest.absolute(), programs=Path(sys.executable).parent)
    for path in (places.checkout, places.manifest, places.programs):
        if set(str(path)) & set(" \t\n\"'$`\\%,:"):
            raise UserError(f"{path}: a path of SLURM scripts must have no spaces, quotes and none of $ % , :")
    job = job_for([config for _, config in left], [element.index for element, _ in left], site)
    return Submission(job=job, scripts=render(job, site, places), places=places)


def submit(submission: Submission) -> tuple[str, str]:
    """Write the files and submit both jobs; returns their ids, of the array and of the report.

    Raises UserError when a script is at fault or sbatch refuses it.
    """
    if shutil.which("sbatch") is None:
        raise UserError("there is no sbatch here; call this on a login node of the cluster, or look with --dry-run")
    for path, text in submission.files():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())
        path.chmod(0o755)
    for script in (submission.scripts.array, submission.scripts.report):
        if found := problems(script):
            raise UserError("the batch script is at fault: " + "; ".join(found))
    array = _sbatch(submission.call("array.sbatch"))
    return array, _sbatch(submission.call("report.sbatch", f"--dependency=afterany:{array}"))


def _sbatch(call: list[str]) -> str:
    done = subprocess.run(call, capture_output=True, text=True)
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise UserError(f"{shlex.join(call)}: {said}; account, partition and limits are in the site file")
    return done.stdout.strip().partition(";")[0]
