"""The commands `flowrl reward train | prepare`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from flowrl.base.errors import UserError
from flowrl.cli.verb import Verb, add_overrides, config_and_overrides

if TYPE_CHECKING:
    from rewards.training.folder import TrainingFolder


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="a YAML file; with --resume, the one in DIR")
    add_overrides(parser, "optim.epochs=1", entry="data.train.0.weight=2")
    parser.add_argument("--resume", metavar="DIR", type=Path, help="go on from its last whole checkpoint")


def _train(args: argparse.Namespace) -> int:
    from flowrl.config_kinds import REWARD_TRAINING, load_as

    config, overrides = config_and_overrides(args)
    if args.resume:
        begun = args.resume / "config.yaml"
        if not begun.is_file():
            raise UserError(f"--resume {args.resume}: holds no training: there is no {begun}")
        overrides = [f"run.name={args.resume.name}", *overrides, f"run.dir={args.resume}", "run.overwrite=false"]
        config = config or begun
    elif config is None:
        raise UserError("reward train: name a config, such as configs/reward/pocket/full.yaml, or use --resume DIR")
    loaded = load_as(REWARD_TRAINING, config, overrides)
    from rewards.training.folder import TrainingFolder
    from rewards.training.run import train_reward

    reward = train_reward(loaded, resume=args.resume is not None)
    if os.environ.get("RANK", "0") == "0":  # one of the processes that were launched speaks for all
        folder = TrainingFolder(path=Path(loaded.run.dir))
        print(_came_to(folder, loaded.model.kind) if reward else _stopped(folder))
    return 0 if reward else 1


def _stopped(folder: TrainingFolder) -> str:
    return f"stopped; go on with: flowrl reward train --resume {folder.path}"


def _came_to(folder: TrainingFolder, kind: str) -> str:
    """The last word of a training: how good the reward is, where it lies, and what to do with it."""
    import json

    reached = json.loads(folder.validation.read_text(encoding="utf-8"))
    sources = ", ".join(f"{name} {100 * share:.1f} %" for name, share in reached["by_source"].items())
    text = ""
    if kind == "dit_reward":
        from rewards.dit_reward.layout import text_shape

        text = f" --text {'x'.join(map(str, text_shape(folder.reward)))}"
    return (
        f"{100 * reached['overall']:.1f} % of {reached['pairs']:,} validation pairs in the right order ({sources})\n"
        f"try it: flowrl reward check {kind} path={folder.reward}{text}\n"
        f"reward: {folder.reward}"
    )


def _prepare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="the YAML file of a reward training")
    add_overrides(parser, "optim.epochs=1", entry="data.train.0.weight=2")
    parser.add_argument(
        "--part", metavar="I/N", default="0/1", help="one of N parts, 0 to N-1, to share the work among processes"
    )


def _prepare(args: argparse.Namespace) -> int:
    from flowrl.config_kinds import REWARD_TRAINING, load_as

    part, _, count = args.part.partition("/")
    if not (part.isdigit() and count.isdigit() and int(part) < int(count)):
        raise UserError(f"--part must read I/N with I from 0 to N-1, such as 0/8, got {args.part!r}")
    config = load_as(REWARD_TRAINING, Path(args.config), args.overrides)
    from rewards.training.data import prepare_stores

    whole = prepare_stores(config, part=int(part), num_parts=int(count))
    print(
        f"prepared: {config.data.store}"
        if whole
        else f"part {args.part} of {config.data.store} is done; others are not"
    )
    return 0


REWARD_VERBS = {
    "reward train": Verb(
        summary="train a reward model on preference pairs, or resume a training",
        example="flowrl reward train configs/reward/pocket/full.yaml optim.epochs=1\n"
        "  accelerate launch --config_file launch/accelerate/zero3.yaml -m flowrl reward train \\\n"
        "      configs/reward/sd35-large-full.yaml",
        add_arguments=_train_arguments,
        run=_train,
    ),
    "reward prepare": Verb(
        summary="turn the images and prompts of preference pairs into latents and text conditions, once",
        example="flowrl reward prepare configs/reward/sd35-large-full.yaml --part 0/8",
        add_arguments=_prepare_arguments,
        run=_prepare,
    ),
}
