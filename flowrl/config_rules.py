"""The rules that hold across the sections of a run's configuration, one function each, named for the rule."""

from __future__ import annotations

import re
from collections.abc import Callable

from flowrl import registry
from flowrl.base.attention_names import ATTENTION_BACKENDS
from flowrl.base.config_tree import did_you_mean, require
from flowrl.config_sections import RunConfig
from flowrl.placement_rules import PLACEMENT_RULES

Rule = Callable[[RunConfig], None]
RULES: list[Rule] = []
_TAKEN_LABELS = ("total", "diversity")  # reward/total/mean and eval/diversity/mean mean something else
_JUDGE = "judge_"  # begins the names of what a judge scored


def rule(function: Rule) -> Rule:
    """Register a rule that every configuration is checked against."""
    RULES.append(function)
    return function


def check(config: RunConfig) -> None:
    """Apply every rule; raises ConfigError at the first that is broken."""
    for one in RULES:
        one(config)


def _value(config: RunConfig, key: str) -> float:
    section, name = key.split(".")
    value: float = getattr(getattr(config, section), name)
    return value


@rule
def counts_are_positive(config: RunConfig) -> None:
    """Sizes and counts must be at least 1, steps and cadences at least 0."""
    for key, least in {
        "run.steps": 0,
        "model.image_size": 8,
        "model.max_sequence_length": 1,
        "model.lora_rank": 1,
        "model.lora_alpha": 1,
        "rollout.prompts_per_step": 1,
        "rollout.group_size": 2,
        "rollout.num_steps": 2,
        "rollout.samples_per_forward": 0,
        "placement.num_rollouts": 0,
        "placement.num_scorers": 1,
        "placement.num_learners": 1,
        "placement.threads": 1,
        "data.encode_ahead": 0,
        "optim.ema_every": 1,
        "eval.every": 0,
        "eval.num_prompts": 1,
        "eval.samples_per_prompt": 1,
        "eval.num_steps": 1,
        "eval.grid_prompts": 0,
        "checkpoint.every": 0,
        "checkpoint.keep": 1,
        "algorithm.inner_steps": 1,
        "algorithm.window_every": 1,
    }.items():
        value = _value(config, key)
        require(value >= least, f"{key} must be at least {least}, got {value}")


@rule
def amounts_are_positive(config: RunConfig) -> None:
    """A learning rate, a norm or a time of zero or less does nothing."""
    for key in ("optim.lr", "optim.eps", "optim.clip_norm", "placement.timeout_s"):
        value = _value(config, key)
        require(value > 0, f"{key} must be positive, got {value}")


@rule
def amounts_are_not_negative(config: RunConfig) -> None:
    """Zero switches these off, or asks for exactness; less than zero means nothing."""
    for key in (
        "optim.weight_decay",
        "rollout.guidance_scale",
        "eval.guidance_scale",
        "gate.max_ratio_absdev",
        "run.seed",
        "eval.seed",
    ):
        value = _value(config, key)
        require(value >= 0, f"{key} must not be negative, got {value}")


@rule
def shares_are_shares(config: RunConfig) -> None:
    """A moving average keeps a share of itself below 1; of all samples at most all can be invalid."""
    decay, invalid = config.optim.ema_decay, config.rewards.max_invalid_fraction
    require(0 <= decay < 1, f"optim.ema_decay must lie in [0, 1), got {decay}")
    require(
        all(0 <= beta < 1 for beta in config.optim.betas), f"optim.betas must lie in [0, 1), got {config.optim.betas}"
    )
    require(0 <= invalid <= 1, f"rewards.max_invalid_fraction must lie in [0, 1], got {invalid}")


@rule
def run_name_is_a_folder_name(config: RunConfig) -> None:
    """The name becomes the run's folder and its title."""
    name = config.run.name
    require(
        name.isprintable() and name.strip() == name and name not in (".", "..") and not set(name) & set("/\\"),
        f"run.name must be usable as the name of a folder, got {name!r}; to write elsewhere set run.dir",
    )
    require(bool(config.run.dir.strip()), f"run.dir must name a folder, got {config.run.dir!r}")


@rule
def plugins_are_known(config: RunConfig) -> None:
    """Names resolve before anything heavy starts."""
    registry.find("policy", config.model.family, key="model.family")
    registry.find("algorithm", config.algorithm.name, key="algorithm.name")
    for part, specs in {"train": config.rewards.train, "watch": config.rewards.watch}.items():
        for index, spec in enumerate(specs):
            registry.find("reward", spec.name, key=f"rewards.{part}[{index}].name")


@rule
def attention_is_known(config: RunConfig) -> None:
    """Backends go by the names that diffusers gives them; whether one can be used here is seen when a run starts."""
    name = config.model.attention
    require(name in ATTENTION_BACKENDS, f"model.attention: unknown {name!r}; {did_you_mean(name, ATTENTION_BACKENDS)}")


@rule
def image_size_fits_patches(config: RunConfig) -> None:
    """Stable Diffusion 3 sees an image in patches of 2 x 2 latents of 8 x 8 pixels."""
    size = config.model.image_size
    require(
        config.model.family != "sd3" or size % 16 == 0,
        f"model.image_size must be a multiple of 16 with model.family sd3, got {size}; "
        f"use {max(16, size - size % 16)} or {size + 16 - size % 16}",
    )


@rule
def something_is_trained_on(config: RunConfig) -> None:
    """A run that trains needs a reward."""
    require(
        bool(config.rewards.train) or config.run.steps == 0,
        "rewards.train must name at least one reward when run.steps > 0, for example [{name: dit_reward}]",
    )


@rule
def trained_rewards_weigh_something(config: RunConfig) -> None:
    """A weight or scale of zero trains nothing; a negative one makes a penalty of the reward."""
    for index, spec in enumerate(config.rewards.train):
        for name, value in {"weight": spec.weight, "scale": spec.scale}.items():
            require(
                value != 0,
                f"rewards.train[{index}].{name} must not be 0; to watch {spec.name} without training on it, "
                "move it to rewards.watch",
            )


@rule
def reward_labels_fit_in_metric_keys(config: RunConfig) -> None:
    """A label stands between the slashes of keys such as reward/LABEL/mean, where some names are taken."""
    for part, specs in {"train": config.rewards.train, "watch": config.rewards.watch}.items():
        for index, spec in enumerate(specs):
            name = spec.metric_name
            require(
                re.fullmatch(r"[\w.+-]+", name) is not None
                and name not in _TAKEN_LABELS
                and not name.startswith(_JUDGE),
                f"rewards.{part}[{index}].label must be letters, digits and any of _ . + -, not one of "
                f"{', '.join(_TAKEN_LABELS)}, and not begin with {_JUDGE}, got {name!r}",
            )


@rule
def reward_labels_are_distinct(config: RunConfig) -> None:
    """Metrics are keyed by label, which is the reward's name unless it is given."""
    names = [spec.metric_name for spec in [*config.rewards.train, *config.rewards.watch]]
    twice = sorted({name for name in names if names.count(name) > 1})
    require(
        not twice,
        f"rewards: each name may stand once in rewards.train and rewards.watch together, got {', '.join(twice)} "
        "more than once; tell them apart by a label, such as {name: dit_reward, label: frozen}",
    )


@rule
def group_splits_into_forwards(config: RunConfig) -> None:
    """Rollout and replay cut a group in the same equal parts."""
    group, part = config.rollout.group_size, config.rollout.samples_per_forward
    require(
        part == 0 or group % part == 0,
        f"rollout.samples_per_forward must divide rollout.group_size = {group}, got {part}; "
        f"use one of {[n for n in range(1, group + 1) if group % n == 0]} or 0 for the whole group",
    )


@rule
def groups_split_over_inner_steps_and_learners(config: RunConfig) -> None:
    """Every learner gets the same number of groups in every inner step."""
    groups = config.rollout.prompts_per_step
    learners = config.placement.learners
    parts = config.algorithm.inner_steps * learners
    below = groups - groups % parts
    require(
        groups % parts == 0,
        f"rollout.prompts_per_step must be a multiple of algorithm.inner_steps * placement.num_learners = "
        f"{config.algorithm.inner_steps} * {learners} = {parts}, got {groups}; "
        f"use {f'{below} or ' if below else ''}{below + parts}",
    )


@rule
def trained_steps_fit(config: RunConfig) -> None:
    """The algorithm's window must lie within the sampler steps."""
    problem = config.algorithm.problem(config.rollout.num_steps)
    require(problem is None, f"algorithm.{problem}")


@rule
def grid_fits_evaluation(config: RunConfig) -> None:
    """The image grid shows evaluation prompts."""
    require(
        config.eval.grid_prompts <= config.eval.num_prompts,
        f"eval.grid_prompts must be at most eval.num_prompts = {config.eval.num_prompts}, "
        f"got {config.eval.grid_prompts}",
    )


RULES += PLACEMENT_RULES
