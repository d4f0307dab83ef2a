"""The command `flowrl matrix`."""

from __future__ import annotations

import argparse
from pathlib import Path

from flowrl.cli.verb import Verb, add_overrides

SITE = Path("launch") / "slurm" / "site.yaml"


def _matrix_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", metavar="EXPERIMENT", type=Path, help="its YAML file; with --element a manifest")
    add_overrides(parser, "run.steps=20")
    parser.add_argument("--profile", metavar="NAME", default="", help="the profile of its configs, such as sd35-large")
    parser.add_argument(
        "--out", metavar="FOLDER", type=Path, help="for the manifest and the runs; by default runs/EXPERIMENT-PROFILE"
    )
    parser.add_argument("--run", action="store_true", help="train what is not finished, here, one run after another")
    parser.add_argument(
        "--slurm", action="store_true", help="submit what is not finished to SLURM, and a report after it"
    )
    parser.add_argument("--site", metavar="FILE", type=Path, default=SITE, help=f"the settings of --slurm ({SITE})")
    parser.add_argument(
        "--dry-run", action="store_true", help="with --slurm: print the scripts and calls, submit nothing"
    )
    parser.add_argument(
        "--element", metavar="INDEX", type=int, help="train that one run of a manifest, or go on with it"
    )
    parser.add_argument("--gpu", metavar="NAME", default="h100", help="the GPU that time and memory are computed for")


def _matrix(args: argparse.Namespace) -> int:
    if args.element is not None:
        return _train_element(args)
    from flowrl.matrix.experiment import read_experiment, runs_of
    from flowrl.matrix.local import run_all
    from flowrl.matrix.manifest import MANIFEST, Element, write_manifest
    from flowrl.matrix.outlook import outlook
    from flowrl.matrix.table import State, row_of, table

    experiment = read_experiment(args.experiment, [f"profile={args.profile}"] if args.profile else [])
    folder = args.out or Path("runs") / f"{args.experiment.stem}-{experiment.profile}"
    runs = runs_of(experiment, folder, args.overrides)
    elements = write_manifest(runs, folder)
    states: dict[str, State] = {}  # what is known better than the runs' folders say it

    def progress() -> str:
        pairs = zip(elements, runs, strict=True)
        return table([row_of(element, run.config, state=states.get(element.name)) for element, run in pairs])

    def say(element: Element, state: State) -> None:
        states[element.name] = state
        print(f"\n{progress()}", flush=True)

    print(f"{experiment.question}\n\n{outlook(experiment, runs, args.gpu)}\n{folder / MANIFEST}:")
    print(progress(), end="", flush=True)
    if args.slurm:
        return _submit(folder / MANIFEST, args)
    if not args.run:
        return 0
    return run_all(folder / MANIFEST, elements, say)


def _submit(manifest: Path, args: argparse.Namespace) -> int:
    from flowrl.slurm.site import read_site
    from flowrl.slurm.submission import prepare, submit

    submission = prepare(manifest, read_site(args.site))
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
