"""The command `flowrl matrix`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flowrl.base.errors import UserError
from flowrl.cli.verb import Verb, add_overrides

if TYPE_CHECKING:
    from flowrl.matrix.experiment import Run

SITE = Path("launch") / "slurm" / "site.yaml"


def _matrix_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", metavar="EXPERIMENT", type=Path, help="its YAML file; with --element a manifest")
    add_overrides(parser, "run.steps=20")
    parser.add_argument("--profile", metavar="NAME", default="", help="the profile of its configs, such as sd35-large")
    parser.add_argument(
        "--out", metavar="FOLDER", type=Path, help="for the manifest and the runs; by default runs/EXPERIMENT-PROFILE"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--run", action="store_true", help="train what is not finished, here, one run after another; then the report"
    )
    what.add_argument(
        "--slurm", action="store_true", help="submit what is not finished to SLURM, and a report after it"
    )
    what.add_argument("--element", metavar="INDEX", type=int, help="train that one run of a manifest, or go on with it")
    parser.add_argument("--site", metavar="FILE", type=Path, help=f"the settings of --slurm (default: {SITE})")
    parser.add_argument(
        "--dry-run", action="store_true", help="with --slurm: print the scripts and calls, submit nothing"
    )
    parser.add_argument("--gpu", metavar="NAME", default="h100", help="the GPU that time and memory are computed for")


def _matrix(args: argparse.Namespace) -> int:
    for option, given in {"--site": args.site is not None, "--dry-run": args.dry_run}.items():
        if given and not args.slurm:
            raise UserError(f"{option} is of --slurm: add --slurm, or leave it out")
    if args.element is not None:
        return _train_element(args)
    from flowrl.matrix.experiment import read_experiment, runs_of, with_overrides
    from flowrl.matrix.folder import EXPERIMENT_FILE, default_folder, is_experiment, write_experiment
    from flowrl.matrix.local import run_all
    from flowrl.matrix.manifest import MANIFEST, Element, write_manifest
    from flowrl.matrix.outlook import outlook
    from flowrl.matrix.table import State, row_of, table

    source = args.experiment
    if is_experiment(source) or source.name == MANIFEST:  # runs that are expanded already
        source = (source if source.is_dir() else source.parent) / EXPERIMENT_FILE
    experiment = read_experiment(source, [f"profile={args.profile}"] if args.profile else [])
    experiment = with_overrides(experiment, args.overrides)
    folder = args.out or default_folder(source, experiment)
    runs = runs_of(experiment, folder)
    prospect = outlook(experiment, runs, args.gpu)
    elements = write_manifest(runs, folder)
    write_experiment(experiment, folder)
    states: dict[str, State] = {}  # what is known better than the runs' folders say it

    def progress() -> str:
        pairs = zip(elements, runs, strict=True)
        return table([row_of(element, run.config, state=states.get(element.name)) for element, run in pairs])

    def say(element: Element, state: State) -> None:
        states[element.name] = state
        print(f"\n{progress()}", flush=True)

    print(f"{experiment.question}\n\n{prospect}\n{folder / MANIFEST}:")
    print(progress(), end="", flush=True)
    if args.slurm:
        return _submit(folder / MANIFEST, args)
    if not args.run:
        return 0
    code = run_all(folder / MANIFEST, elements, say)
    if code > 1:
        print("flowrl: stopped; the same command goes on from there", file=sys.stderr)
        return code
    _write_report(folder, runs, failed=code == 1)
    return code


def _write_report(folder: Path, runs: Sequence[Run], *, failed: bool) -> None:
    """Write the page and print where it is; where runs have failed, that there can be no page is not the error."""
    from flowrl.base.embedded import POCKET
    from flowrl.matched.page import write_experiment_report
    from flowrl.matrix.folder import JUDGED

    try:
        print(f"\n{write_experiment_report(folder)}")
    except UserError as error:
        if not failed:
            raise
        print(f"flowrl: error: {error}", file=sys.stderr)
        return
    if not (folder / JUDGED).exists():
        pocket = all(run.config.model.path == POCKET for run in runs)
        judge = "--judge oracle" if pocket else "--endpoint URL --model NAME"
        print(f"not judged yet: flowrl judge {folder} {judge}, then flowrl report {folder}")


def _submit(manifest: Path, args: argparse.Namespace) -> int:
    from flowrl.slurm.site import read_site
    from flowrl.slurm.submission import prepare, submit

    submission = prepare(manifest, read_site(args.site or SITE))
    if args.dry_run:
        print(f"\n{submission.shown()}", end="")
        return 0
    array, report = submit(submission)
    print(f"\nsubmitted: job {array} trains, job {report} writes the report; output is in {submission.places.folder}")
    return 0


def _train_element(args: argparse.Namespace) -> int:
    from flowrl.matrix.manifest import element_of
    from flowrl.matrix.progress import begun, finished

    element = element_of(args.experiment, args.element)
    config = element.load(args.overrides)
    if finished(element.dir, config.run.steps):
        print(f"{element.dir}: all {config.run.steps} steps are done")
        return 0
    from flowrl.run import run_training

    return run_training(config, resume=begun(element.dir))


MATRIX_VERBS = {
    "matrix": Verb(
        summary="expand an experiment of matched runs, check that its arms are matched, and run it",
        example="flowrl matrix experiments/matched/rewards.yaml --run\n"
        "  flowrl matrix experiments/matched/rewards.yaml --profile sd35-large --gpu h200\n"
        "  flowrl matrix experiments/matched/rewards.yaml --slurm --dry-run\n"
        "  flowrl matrix runs/rewards-pocket/manifest.jsonl --element 3",
        add_arguments=_matrix_arguments,
        run=_matrix,
    ),
}
