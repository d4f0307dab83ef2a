"""Makes the rewards that a configuration names, and finds out beforehand whether that will work."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flowrl.actors.device import ModelSpec
from flowrl.base.devices import pick_device
from flowrl.config import ConfigError, RewardSpec
from flowrl.protocols import CheckableReward, Reward
from flowrl.registry import resolve
from flowrl.types import TrainedOn


@dataclass(frozen=True, kw_only=True)
class LatentSource:
    """Where the latents and text conditions come from that latent rewards read.

    Example: ``LatentSource(latent_space="vae16x8-scale1.5305-shift0.0609", text_length=333, max_sequence_length=256,
    key="model.max_sequence_length")``
    """

    latent_space: str
    text_length: int = 0  # tokens of a text condition; 0: not known
    max_sequence_length: int = 0  # T5 tokens of it
    key: str = ""  # what sets them
    folder: str = ""  # of a prepared set, whose texts were encoded before; empty: a policy

    @classmethod
    def of_policy(cls, model: ModelSpec, key: str) -> LatentSource:
        """A policy and its encoders, the T5 tokens of which are set by `key`."""
        return cls(
            latent_space=model.latent_space,
            text_length=model.text_length,
            max_sequence_length=model.section.max_sequence_length,
            key=key,
        )


def check_rewards(specs: Sequence[RewardSpec], source: LatentSource, device: str) -> dict[str, TrainedOn]:
    """What the latent rewards among these were trained on, by what metrics call them, as far as they say it.

    Raises ConfigError, or what the reward's own check raises, when one cannot be made or cannot read what the source
    gives. A reward whose class has no `check` is found wanting only when its scorer starts.
    """
    found = {}
    for spec in specs:
        factory, arguments = _bind(spec, device)
        if not isinstance(factory, CheckableReward):
            continue
        trained = factory.check(arguments)
        if trained is None:
            continue
        if not isinstance(trained, TrainedOn):
            raise ConfigError(
                f"rewards: check of {spec.name!r} must return a flowrl.types.TrainedOn, or None for a pixel reward, "
                f"got {trained!r}"
            )
        check_latent_space(spec.name, trained.latent_space, source.latent_space, folder=source.folder)
        _check_text_length(spec.name, trained.text_length, source)
        found[spec.metric_name] = trained
    return found


def make_reward(spec: RewardSpec, device: str = "cpu") -> Reward:
    """Make one reward for no policy in particular; raises ConfigError when its options do not fit."""
    factory, arguments = _bind(spec, device)
    if arguments["device"] == "cuda":
        pick_device("cuda", key=f"device of reward {spec.name!r}")
    reward: Reward = factory(**arguments)
    return reward


def load_reward(spec: RewardSpec, policy_space: str, device: str) -> Reward:
    """Make one reward; raises ConfigError when its options do not fit, or when it reads other latents."""
    reward = make_reward(spec, device)
    check_latent_space(spec.name, reward.latent_space if reward.input_kind == "latent" else None, policy_space)
    return reward


def check_latent_space(name: str, reward_space: str | None, space: str, *, folder: str = "") -> None:
    """Raise ConfigError when a latent reward cannot read latents of `space`, the policy's or those of a prepared set's
    folder; a pixel reward has no space.
    """
    if reward_space not in (None, space):
        maker = f"{folder} holds" if folder else "the policy makes"
        raise ConfigError(
            f"rewards: {name!r} reads latents of {reward_space}, but {maker} latents of {space}; use a reward trained "
            "in that latent space, or a pixel reward"
        )


def _check_text_length(name: str, tokens: int, source: LatentSource) -> None:
    """Raise ConfigError when a latent reward was trained on other text lengths than the source gives."""
    if 0 in (tokens, source.text_length) or tokens == source.text_length:
        return
    said = f"rewards: {name!r} was trained on texts of {tokens} tokens, but gets {source.text_length}"
    if source.folder:
        raise ConfigError(
            f"{said} of {source.folder}; prepare the set again with the max_sequence_length of the reward's training"
        )
    right = source.max_sequence_length + tokens - source.text_length
    advice = f"set {source.key} to {right}" if right > 0 else "use another reward"
    raise ConfigError(f"{said} with {source.key} {source.max_sequence_length}; {advice}")


def _bind(spec: RewardSpec, device: str) -> tuple[Any, dict[str, Any]]:
    """The class of a reward and the arguments to make it with."""
    factory, options = resolve("reward", spec.name)
    arguments = {"device": device, **options, **spec.options}
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        raise ConfigError(f"rewards: the options {spec.options} do not fit reward {spec.name!r}: {error}") from None
    return factory, arguments
