"""The command `flowrl reward eval`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowrl.base.errors import UserError
from flowrl.cli.verb import Verb, add_overrides

if TYPE_CHECKING:
    from flowrl.models.latent_inputs import LatentInputs
    from flowrl.protocols import Reward
    from rewards.evaluation.config import EvaluationConfig

_NO_SPACE = "none (encoders.path is not set)"


def _eval_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", type=Path, help="a YAML file: rewards and benchmarks")
    add_overrides(parser, "device=cuda")


def _eval(args: argparse.Namespace) -> int:
    from flowrl.config_kinds import load_as

    config = load_as("reward evaluation", args.config, args.overrides)
    from flowrl.actors.reward_loading import check_rewards, load_reward
    from flowrl.base.devices import pick_device
    from flowrl.config import RewardSpec
    from rewards.evaluation.run import PAGE, run
    from rewards.evaluation.table import main_table

    device = pick_device(config.device)
    inputs, space = _encoders(config, device)
    check_rewards([RewardSpec(name=entry.name, options=entry.options) for entry in config.rewards], space, device)

    def make(name: str, options: Mapping[str, Any]) -> Reward:
        return load_reward(RewardSpec(name=name, options=dict(options)), space, device)

    result = run(config, make=make, inputs=inputs)
    print(main_table(result))
    print(Path(config.out) / PAGE)
    return 0


def _encoders(config: EvaluationConfig, device: str) -> tuple[LatentInputs | None, str]:
    """The encoders of the policy and the name of its latent space, where a policy is named."""
    section = config.encoders
    if not section.path:
        return None, _stored_space(config)
    from flowrl.base.dtypes import torch_dtype
    from flowrl.base.embedded import folder_of
    from flowrl.core.buckets import BucketPlan
    from flowrl.models.latent_inputs import EncoderSetting, LatentInputs
    from flowrl.registry import resolve

    path = folder_of(section.path, "sd35")
    family, _ = resolve("policy", section.family)
    family.check(path)
    plan = BucketPlan(image_size=section.image_size, step=section.bucket_step, max_aspect=section.max_aspect)
    setting = EncoderSetting(
        path=path,
        max_sequence_length=section.max_sequence_length,
        dtype=torch_dtype(section.dtype),
        device=device,
        buckets=plan if section.image_size else None,
    )
    return LatentInputs(family, setting), family.latent_space(path)


def _stored_space(config: EvaluationConfig) -> str:
    """The latent space of the prepared sets, which need no encoders."""
    from rewards.data.store import load_info

    prepared = [Path(benchmark.prepared) for benchmark in config.benchmarks if benchmark.prepared]
    spaces = {space: folder for folder in prepared if (space := load_info(folder).latent_space)}
    if len(spaces) > 1:
        raise UserError(
            f"benchmarks: prepared sets must be of one latent space, got {' and '.join(map(str, spaces.values()))}"
        )
    return next(iter(spaces), _NO_SPACE)


REWARD_EVAL_VERBS = {
    "reward eval": Verb(
        summary="measure how often rewards agree with people, side by side on the same pairs, or go on with it",
        example="flowrl reward eval configs/reward/eval/benchmarks.yaml device=cuda out=runs/table-1",
        add_arguments=_eval_arguments,
        run=_eval,
    ),
}
