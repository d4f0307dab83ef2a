"""What must hold before a run starts: a run makes all of these checks, and `flowrl doctor` tells what each comes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flowrl.base.devices import pick_device
from flowrl.base.embedded import POCKET
from flowrl.base.folder_lock import make_writable
from flowrl.config import ConfigError, RewardSpec, RunConfig
from flowrl.data import PromptOrder, read_prompts
from flowrl.fetch.needs import needs
from flowrl.model_spec import ModelSpec
from flowrl.models.image_sizes import latent_deviations
from flowrl.pocket.prompt_sets import prompt_file
from flowrl.reward_loading import LatentSource, check_rewards
from flowrl.types import Prompt, TrainedOn


@dataclass(frozen=True, kw_only=True)
class RunInputs:
    """What a run starts with, all of it found to be here and to fit together."""

    config: RunConfig
    model: ModelSpec
    prompts: PromptOrder
    held_out: list[Prompt]
    notes: list[str]  # on how the run's images differ from what its rewards were trained on


def run_inputs(config: RunConfig) -> RunInputs:
    """Make every check; raises UserError, which says what to do, at the first that fails."""
    check_files(config)
    model = ModelSpec.of(config)
    check_device(config)
    check_cache(config)
    trained = rewards_that_fit([*config.rewards.train, *config.rewards.watch], model)
    return RunInputs(
        config=config,
        model=model,
        prompts=prompt_order(config, train_prompts(config)),
        held_out=held_out_prompts(config),
        notes=latent_deviations([(config.model.image_size,) * 2], trained),
    )


def check_files(config: RunConfig) -> None:
    """Raise ConfigError, which names all of them, when files that the configuration names are not there at all."""
    absent = [need for need in needs(config) if not need.path.exists()]
    if not absent:
        return
    lines = [f"{need.key}: {need.path} is not there" + (f"; {need.advice}" if need.advice else "") for need in absent]
    if any(need.bundle is not None for need in absent):
        lines.append("flowrl fetch CONFIG downloads what is public, and says how to get what is gated")
    raise ConfigError("\n  ".join(lines))


def check_device(config: RunConfig) -> None:
    """Raise UserError when the actors will be on this machine, which has not the device that they are to compute on."""
    placement = config.placement
    if placement.mode == "local" or placement.ray_address == "local":
        pick_device(placement.device, key="placement.device")


def check_cache(config: RunConfig) -> None:
    """Raise ConfigError when text conditions are to be kept where nothing can be written."""
    if config.data.condition_cache:
        make_writable(Path(config.data.condition_cache), "data.condition_cache")


def rewards_that_fit(specs: Sequence[RewardSpec], model: ModelSpec) -> dict[str, TrainedOn]:
    """What the latent rewards among these were trained on, as `flowrl.reward_loading.check_rewards` says it.

    Raises ConfigError, or what the reward itself raises, when one cannot be made or does not read what the model makes.
    """
    length = model.section.max_sequence_length
    source = LatentSource.of_policy(model.family, model.path, length, key="model.max_sequence_length")
    return check_rewards(specs, [source], model.device)


def train_prompts(config: RunConfig) -> list[Prompt]:
    """The prompts to train on; raises ConfigError when they cannot be read."""
    return read_prompts(_prompt_path(config.data.train_prompts, "train"), "data.train_prompts")


def prompt_order(config: RunConfig, prompts: list[Prompt]) -> PromptOrder:
    """Which of the prompts a step trains on; raises ConfigError when a step takes more than there are."""
    return PromptOrder(prompts, per_step=config.rollout.prompts_per_step, seed=config.run.seed)


def held_out_prompts(config: RunConfig) -> list[Prompt]:
    """The prompts to evaluate on; raises ConfigError when they cannot be read or are fewer than an evaluation takes."""
    prompts = read_prompts(_prompt_path(config.data.eval_prompts, "eval"), "data.eval_prompts")
    if config.eval.num_prompts > len(prompts):
        raise ConfigError(
            f"eval.num_prompts must be at most the number of held-out prompts = {len(prompts)}, "
            f"got {config.eval.num_prompts}",
            advice="add prompts or lower it",
        )
    return prompts


def _prompt_path(value: str, part: str) -> Path:
    return prompt_file(part) if value == POCKET else Path(value)
