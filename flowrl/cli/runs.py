"""The commands about runs: train, show, check, eval and report. What is heavy is imported inside of each."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from flowrl.cli.verb import Verb, add_overrides, check_output, config_and_overrides


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="a YAML file; with --resume, that of the run")
    add_overrides(parser, "optim.lr=1e-4", entry="rewards.train.0.weight=2")
    parser.add_argument("--resume", metavar="RUN_DIR", help="go on from the last complete checkpoint of this run")


def _train(args: argparse.Namespace) -> int:
    from flowrl.base.config_tree import ConfigError
    from flowrl.config_kinds import RUN, load_as
    from flowrl.find_runs import run_dir

    config, overrides = config_and_overrides(args)
    if args.resume:
        run = run_dir(args.resume)
        # The folder may have been moved since it was made; its place is where it was found now.
        overrides = [f"run.name={run.name}", *overrides, f"run.dir={run}"]
        config = config or run / "config.yaml"
    elif config is None:
        raise ConfigError("train: name a config, such as configs/pocket/ditreward.yaml, or a run with --resume")
    loaded = load_as(RUN, config, overrides)
    from flowrl.run import run_training

    return run_training(loaded, resume=bool(args.resume))


def _show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a YAML file or a run")
    add_overrides(parser, "optim.lr=1e-4", entry="rewards.train.0.weight=2")


def _show(args: argparse.Namespace) -> int:
    from flowrl.base.config_file import dump_config
    from flowrl.config_kinds import load_any
    from flowrl.find_runs import config_file

    print(dump_config(load_any(config_file(args.config), args.overrides)), end="")
    sys.stdout.flush()
    return 0


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("configs", metavar="CONFIG", nargs="+", help="YAML files, or folders of them")


def _check(args: argparse.Namespace) -> int:
    from flowrl.base.config_tree import ConfigError
    from flowrl.config_kinds import load_any

    failed = 0
    for path in map(Path, args.configs):
        files = sorted(path.glob("**/*.yaml")) if path.is_dir() else [path]
        if not files:
            raise ConfigError(f"{path}: no .yaml file in this folder")
        for file in files:
            try:
                load_any(file, [])
                print(f"ok    {file}")
            except ConfigError as error:
                failed += 1
                print(f"FAIL  {file}: {str(error).removeprefix(f'{file}: ')}")
    return 1 if failed else 0


def _eval_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target",
        metavar="RUN_OR_CHECKPOINT",
        help="a run, for its final weights; a checkpoint such as runs/NAME/checkpoints/step_000040, for the policy or "
        "with eval.weights=ema its average; or a config, for the model without an adapter",
    )
    add_overrides(parser, "eval.num_prompts=2048", entry="rewards.train.0.weight=2")


def _eval(args: argparse.Namespace) -> int:
    from flowrl.config import load
    from flowrl.evaluation_identity import evaluation_identity

    file, weights, title = _evaluated(args.target)
    overrides = ["run.dir=runs/${run.name}", *args.overrides, "run.steps=0"]
    # The same evaluation has the same name, so that the same command goes on where it was stopped.
    identity = evaluation_identity(load(file, overrides), weights)
    config = load(file, [f"run.name={title}-eval-{identity[:8]}", *overrides])
    done = Path(config.run.dir) / "metrics.jsonl"
    if done.is_file() and done.stat().st_size and not config.run.overwrite:
        print(f"{config.run.dir}: has this evaluation already; run.overwrite=true makes it again")
        return 0
    from flowrl.run import run_evaluation

    return run_evaluation(config, weights)


def _evaluated(text: str) -> tuple[Path, Path | None, str]:
    """The config, the weights if any, and the name of what is to be evaluated."""
    from flowrl.base import checkpoint
    from flowrl.base.config_tree import ConfigError
    from flowrl.find_runs import config_file

    path = Path(text)
    if checkpoint.is_one(path):
        if problem := checkpoint.problem(path):
            raise ConfigError(f"{path}: cannot be used: {problem}; take another checkpoint")
        run = path.parent.parent
        return run / "config.yaml", path, f"{run.name}-{path.name}"
    file = config_file(text)
    if file.name != "config.yaml":
        return file, None, file.stem
    run = file.parent
    if not (run / "lora").is_dir():
        raise ConfigError(
            f"{run}/lora: not there: the run has not ended; name one of {run}/checkpoints, or let it end with "
            f"flowrl train --resume {run}"
        )
    return file, run / "lora", run.name


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target",
        metavar="RUN|EXPERIMENT",
        nargs="?",
        help="a run; or an experiment: its folder, manifest or YAML file; by default the latest run under runs/",
    )
    parser.add_argument(
        "--compare",
        metavar="RUN",
        nargs="?",
        const="",
        action="append",
        help="beside this run; by default the latest that was trained on another reward; may be repeated",
    )
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help="the page to write; by default in the folder of the run or experiment"
    )


def _report(args: argparse.Namespace) -> int:
    from flowrl.find_runs import experiment_dir, latest_run, run_dir

    check_output(args.out)
    if args.compare is not None:
        from flowrl.matched.page import write_comparison

        print(write_comparison(_compared([text for text in (args.target, *args.compare) if text]), args.out))
        return 0
    if args.target and (experiment := experiment_dir(args.target)) is not None:
        from flowrl.matched.page import write_experiment_report

        print(write_experiment_report(experiment, args.out))
        return 0
    from flowrl.report.run_report import write_report

    print(write_report(run_dir(args.target) if args.target else latest_run(), args.out))
    return 0


def _compared(names: list[str]) -> list[Path]:
    """The runs that are laid side by side: those named, and where one is missing the latest of another reward."""
    from flowrl.base.config_tree import ConfigError
    from flowrl.find_runs import experiment_dir, latest_training_run, run_dir

    for text in names:
        if experiment_dir(text) is not None:
            raise ConfigError(
                f"--compare is of runs, and {text} is an experiment; flowrl report {text} compares its arms"
            )
    runs = [run_dir(text) for text in names] or [latest_training_run()]
    return runs if len(runs) > 1 else [*runs, latest_training_run(unlike=runs[0])]


RUN_VERBS = {
    "train": Verb(
        summary="train a policy on a reward, or resume a run",
        example="flowrl train configs/pocket/ditreward.yaml run.steps=20 algorithm.kl_beta=0.02\n"
        "  flowrl train --resume runs/ditreward-20260131-154500",
        add_arguments=_train_arguments,
        run=_train,
    ),
    "show": Verb(
        summary="print the resolved configuration, and run nothing",
        example="flowrl show configs/pocket/ditreward.yaml rollout.group_size=8",
        add_arguments=_show_arguments,
        run=_show,
    ),
    "check": Verb(
        summary="validate configs, a line each; exit 1 if one is wrong",
        example="flowrl check configs",
        add_arguments=_check_arguments,
        run=_check,
    ),
    "eval": Verb(
        summary="evaluate on the held-out prompts, without training",
        example="flowrl eval runs/ditreward-20260131-154500 eval.num_prompts=128\n"
        "  flowrl eval runs/ditreward-20260131-154500/checkpoints/step_000040 eval.weights=ema",
        add_arguments=_eval_arguments,
        run=_eval,
    ),
    "report": Verb(
        summary="write the page of a run, of an experiment, or of some runs side by side",
        example="flowrl report runs/ditreward-20260131-154500\n"
        "  flowrl report runs/rewards-pocket\n"
        "  flowrl report experiments/matched/rewards.yaml\n"
        "  flowrl report --compare\n"
        "  flowrl report runs/ditreward-0 --compare runs/hpsv3-0 --compare runs/oracle-0",
        add_arguments=_report_arguments,
        run=_report,
    ),
}
