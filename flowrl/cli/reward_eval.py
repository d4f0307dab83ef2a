"""The command `flowrl reward eval`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowrl.cli.verb import Verb, add_overrides

if TYPE_CHECKING:
    from flowrl.actors.reward_loading import LatentSource
    from flowrl.models.latent_inputs import LatentInputs
    from flowrl.protocols import Reward
    from flowrl.types import TrainedOn
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
    specs = [RewardSpec(name=entry.name, label=entry.title, options=entry.options) for entry in config.rewards]
    sources = _sources(config)
    trained = [check_rewards(specs, source, device) for source in sources]  # each time the same
    inputs, remarks = _encoders(config, trained[0], device)
    for remark in remarks:
        print(f"reward eval: {remark}", file=sys.stderr)

    def make(name: str, options: Mapping[str, Any]) -> Reward:
        return load_reward(RewardSpec(name=name, options=dict(options)), sources[0].latent_space, device)

    result = run(config, make=make, inputs=inputs, remarks=remarks)
    print(main_table(result))
    print(Path(config.out) / PAGE)
    return 0


def _sources(config: EvaluationConfig) -> list[LatentSource]:
    """Where latents and text conditions come from: the encoders, where images are scored, and each prepared set."""
    from flowrl.actors.reward_loading import LatentSource
    from flowrl.base.embedded import folder_of
    from flowrl.registry import resolve
    from rewards.data.store import load_info

    section = config.encoders
    found = []
    if _reads_images(config) and section.path:
        path = folder_of(section.path, "sd35")
        family, _ = resolve("policy", section.family)
        family.check(path)
        found.append(
            LatentSource(
                latent_space=family.latent_space(path),
                text_length=family.text_length(path, section.max_sequence_length),
                max_sequence_length=section.max_sequence_length,
                key="encoders.max_sequence_length",
            )
        )
    elif _reads_images(config):
        found.append(LatentSource(latent_space=_NO_SPACE))
    for folder in (benchmark.prepared for benchmark in config.benchmarks if benchmark.prepared):
        info = load_info(Path(folder))
        if info.latent_space:
            found.append(LatentSource(latent_space=info.latent_space, text_length=info.text_length, folder=folder))
    return found or [LatentSource(latent_space=_NO_SPACE)]


def _reads_images(config: EvaluationConfig) -> bool:
    return any(benchmark.sources for benchmark in config.benchmarks)


def _encoders(
    config: EvaluationConfig, trained: Mapping[str, TrainedOn], device: str
) -> tuple[LatentInputs | None, list[str]]:
    """The encoders of the policy, where they are needed, and what there is to say of the images that they are given."""
    section = config.encoders
    if not section.path or not _reads_images(config):
        return None, []
    from flowrl.base.dtypes import torch_dtype
    from flowrl.base.embedded import folder_of
    from flowrl.models.image_sizes import ImageChoice, deviations, shared_buckets
    from flowrl.models.latent_inputs import EncoderSetting, LatentInputs
    from flowrl.registry import resolve

    choice = ImageChoice(image_size=section.image_size, bucket_step=section.bucket_step, max_aspect=section.max_aspect)
    keys = "encoders.image_size, encoders.bucket_step and encoders.max_aspect"
    buckets = shared_buckets(choice, trained, keys=keys)
    family, _ = resolve("policy", section.family)
    setting = EncoderSetting(
        path=folder_of(section.path, "sd35"),
        max_sequence_length=section.max_sequence_length,
        dtype=torch_dtype(section.dtype),
        device=device,
        buckets=buckets,
    )
    return LatentInputs(family, setting), deviations(buckets, trained)


REWARD_EVAL_VERBS = {
    "reward eval": Verb(
        summary="measure how often rewards agree with people, side by side on the same pairs, or go on with it",
        example="flowrl reward eval configs/reward/eval/benchmarks.yaml device=cuda out=runs/table-1",
        add_arguments=_eval_arguments,
        run=_eval,
    ),
}
