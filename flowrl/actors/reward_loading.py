"""Makes the rewards that a configuration names, and finds out beforehand whether that will work."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from flowrl.base.devices import pick_device
from flowrl.config import ConfigError, RewardSpec
from flowrl.protocols import CheckableReward, Reward
from flowrl.registry import resolve


def check_rewards(specs: Sequence[RewardSpec], policy_space: str, device: str) -> None:
    """Raise ConfigError, or what the reward's own check raises, when one of the rewards cannot be made.

    A reward whose class has no `check` is found wanting only when its scorer starts.
    """
    for spec in specs:
        factory, arguments = _bind(spec, device)
        if isinstance(factory, CheckableReward):
            check_latent_space(spec.name, factory.check(arguments), policy_space)


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


def check_latent_space(name: str, reward_space: str | None, policy_space: str) -> None:
    """Raise ConfigError when a latent reward cannot read the policy's latents; a pixel reward has no space."""
    if reward_space not in (None, policy_space):
        raise ConfigError(
            f"rewards: {name!r} reads latents of {reward_space}, but the policy makes latents of "
            f"{policy_space}; use a reward trained in the policy's latent space, or a pixel reward"
        )


def _bind(spec: RewardSpec, device: str) -> tuple[Any, dict[str, Any]]:
    """The class of a reward and the arguments to make it with."""
    factory, options = resolve("reward", spec.name)
    arguments = {"device": device, **options, **spec.options}
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        raise ConfigError(f"rewards: the options {spec.options} do not fit reward {spec.name!r}: {error}") from None
    return factory, arguments
