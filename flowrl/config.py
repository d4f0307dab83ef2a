"""The configuration of a run: typed sections, how a YAML file and overrides become one, and the rules across sections."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flowrl.algorithms.configs import FlowGRPOConfig

POCKET = "pocket"


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the key, the rule, the value and the fix."""


@dataclass
class RunSection:
    """What the run is called, where it writes, and how long it goes on."""

    name: str = MISSING
    dir: str = "runs/${run.name}"
    seed: int = 0
    steps: int = 60  # 0 evaluates only
    overwrite: bool = False  # start anew in a directory that exists


@dataclass
class ModelSection:
    """The policy that is trained."""

    family: str = "sd3"
    path: str = POCKET  # a diffusers folder, or "pocket" for the embedded one
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    image_size: int = 64  # pixels, height and width
    max_sequence_length: int = 14  # T5 tokens; the same in rollout, training and reward
    lora_rank: int = 32
    lora_alpha: int = 64
    lora_targets: list[str] = field(
        default_factory=lambda: [
            "attn.to_q",
            "attn.to_k",
            "attn.to_v",
            "attn.to_out.0",
            "attn.add_q_proj",
            "attn.add_k_proj",
            "attn.add_v_proj",
            "attn.to_add_out",
        ]
    )


@dataclass
class DataSection:
    """Where prompts come from: text files with one prompt per line, or "pocket" for the embedded ones."""

    train_prompts: str = POCKET
    eval_prompts: str = POCKET


@dataclass
class RolloutSection:
    """How images are sampled for training."""

    prompts_per_step: int = 12
    group_size: int = 16
    num_steps: int = 10
    guidance_scale: float = 4.5
    samples_per_forward: int = 0  # of a group, in rollout and in replay alike; 0 = the whole group


@dataclass
class RewardSpec:
    """One reward: by registered name, entry point or dotted path, with its weight and its own options."""

    name: str = MISSING
    weight: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class RewardsSection:
    """What is trained on, and what is only watched at evaluations."""

    train: list[RewardSpec] = field(default_factory=list)
    watch: list[RewardSpec] = field(default_factory=list)
    max_invalid_fraction: float = 0.05  # of a step's samples without a finite score; above it the run stops


@dataclass
class OptimSection:
    """AdamW on the adapter."""

    lr: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    ema_decay: float = 0.9
    ema_every: int = 8  # inner steps between two applications of the moving average


@dataclass
class PlacementSection:
    """Which processes there are and where they run."""

    mode: Literal["local", "split", "fused"] = "split"
    num_rollouts: int = 2
    num_scorers: int = 2
    num_learners: int = 2
    shard_scorer: bool = True  # ZeRO-3 over the scorers; false = replicas
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 1  # torch threads of each actor; results on the CPU are bit-equal only at the same number
    ray_address: str = "local"  # "local" starts Ray for this run; host:port joins a cluster
    timeout_s: float = 300.0  # of one call to an actor


@dataclass
class EvalSection:
    """Held-out evaluation: fixed prompts and noise, ODE sampling."""

    every: int = 20
    num_prompts: int = 64
    samples_per_prompt: int = 4
    num_steps: int = 10
    guidance_scale: float = 4.5
    weights: Literal["policy", "ema"] = "policy"
    seed: int = 1234
    grid_prompts: int = 8


@dataclass
class CheckpointSection:
    """Resumable state."""

    every: int = 20
    keep: int = 2


@dataclass
class GateSection:
    """What stops a run whose numbers cannot be trusted."""

    max_ratio_absdev: float = 1e-3  # of the first inner step of a step; exactly 0 is expected on the CPU


@dataclass
class RunConfig:
    """Everything that defines a run."""

    run: RunSection = field(default_factory=RunSection)
    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    rollout: RolloutSection = field(default_factory=RolloutSection)
    rewards: RewardsSection = field(default_factory=RewardsSection)
    algorithm: FlowGRPOConfig = field(default_factory=FlowGRPOConfig)
    optim: OptimSection = field(default_factory=OptimSection)
    placement: PlacementSection = field(default_factory=PlacementSection)
    eval: EvalSection = field(default_factory=EvalSection)
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    gate: GateSection = field(default_factory=GateSection)


def load(path: Path | str, overrides: list[str] | None = None) -> RunConfig:
    """Read a YAML file over the defaults, then `key=value` overrides over both; raises ConfigError."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file{_closest_config(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    schema = OmegaConf.structured(RunConfig)
    try:
        merged = OmegaConf.merge(schema, OmegaConf.create(text))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {_plain(error)}") from None
    except Exception as error:  # the YAML parser has exceptions of its own
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    for override in overrides or []:
        if "=" not in override or override.startswith("="):
            raise ConfigError(f"override {override!r} must read key=value, for example run.steps=20")
        try:
            merged = OmegaConf.merge(merged, OmegaConf.from_dotlist([override]))
        except OmegaConfBaseException as error:
            raise ConfigError(f"override {override!r}: {_plain(error)}") from None
    try:
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {_plain(error)}") from None
    assert isinstance(config, RunConfig)
    check(config)
    return config


def _closest_config(path: Path) -> str:
    others = [str(other) for other in Path("configs").glob("**/*.yaml")]
    close = difflib.get_close_matches(str(path), others, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _plain(error: OmegaConfBaseException) -> str:
    """The library's message with the full key first and its trailer of internals dropped."""
    message = str(error.msg or error).split("\n")[0]
    key = str(error.full_key or "")
    message = re.sub(r"Key '([^']+)' not in '\w+'", rf"unknown key '{key}'" if key else r"unknown key '\1'", message)
    message = re.sub(r"key '([^']+)' is not in struct|Missing mandatory value: (\S+)", r"\2 must be set", message)
    return message if not key or key in message else f"{key}: {message}"


def dump(config: RunConfig) -> str:
    """The resolved configuration as YAML."""
    return str(OmegaConf.to_yaml(OmegaConf.structured(config), resolve=True))


def diff(left: RunConfig, right: RunConfig) -> dict[str, tuple[Any, Any]]:
    """The keys in which two configurations differ, with both values."""
    flat_left, flat_right = _flat(left), _flat(right)
    keys = sorted(flat_left.keys() | flat_right.keys())
    return {
        key: (flat_left.get(key), flat_right.get(key)) for key in keys if flat_left.get(key) != flat_right.get(key)
    }


def _flat(config: RunConfig) -> dict[str, Any]:
    flat: dict[str, Any] = {}

    def walk(prefix: str, node: Any) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                walk(f"{prefix}.{key}" if prefix else str(key), value)
        else:
            flat[prefix] = node

    walk("", OmegaConf.to_container(OmegaConf.structured(config), resolve=True))
    return flat


RULES: list[Callable[[RunConfig], None]] = []


def rule(function: Callable[[RunConfig], None]) -> Callable[[RunConfig], None]:
    """Register a rule that every configuration is checked against."""
    RULES.append(function)
    return function


def check(config: RunConfig) -> None:
    """Apply every rule; raises ConfigError at the first that is broken."""
    for one in RULES:
        one(config)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


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
        "placement.num_rollouts": 1,
        "placement.num_scorers": 1,
        "placement.num_learners": 1,
        "placement.threads": 1,
        "optim.ema_every": 1,
        "eval.every": 0,
        "eval.num_prompts": 1,
        "eval.samples_per_prompt": 1,
        "eval.num_steps": 1,
        "eval.grid_prompts": 0,
        "checkpoint.every": 0,
        "checkpoint.keep": 1,
        "algorithm.inner_steps": 1,
    }.items():
        section, name = key.split(".")
        value = getattr(getattr(config, section), name)
        _require(value >= least, f"{key} must be at least {least}, got {value}")


@rule
def learning_rate_is_positive(config: RunConfig) -> None:
    """A zero or negative learning rate trains nothing."""
    _require(config.optim.lr > 0, f"optim.lr must be positive, got {config.optim.lr}")


@rule
def ema_decay_is_a_share(config: RunConfig) -> None:
    """The moving average keeps a share of itself."""
    decay = config.optim.ema_decay
    _require(0 <= decay < 1, f"optim.ema_decay must lie in [0, 1), got {decay}")


@rule
def something_is_trained_on(config: RunConfig) -> None:
    """A run that trains needs a reward."""
    _require(
        bool(config.rewards.train) or config.run.steps == 0,
        "rewards.train must name at least one reward when run.steps > 0, for example [{name: dit_reward}]",
    )


@rule
def reward_names_are_distinct(config: RunConfig) -> None:
    """Metrics are keyed by reward name."""
    names = [spec.name for spec in [*config.rewards.train, *config.rewards.watch]]
    twice = sorted({name for name in names if names.count(name) > 1})
    _require(not twice, f"rewards: each name may stand once in rewards.train and rewards.watch together, got {twice}")


@rule
def group_splits_into_forwards(config: RunConfig) -> None:
    """Rollout and replay cut a group in the same equal parts."""
    group, part = config.rollout.group_size, config.rollout.samples_per_forward
    _require(
        part == 0 or group % part == 0,
        f"rollout.samples_per_forward must divide rollout.group_size = {group}, got {part}; "
        f"use one of {[n for n in range(1, group + 1) if group % n == 0]} or 0 for the whole group",
    )


@rule
def groups_split_over_inner_steps_and_learners(config: RunConfig) -> None:
    """Every learner gets the same number of groups in every inner step."""
    groups = config.rollout.prompts_per_step
    learners = 1 if config.placement.mode == "local" else config.placement.num_learners
    parts = config.algorithm.inner_steps * learners
    _require(
        groups % parts == 0,
        f"rollout.prompts_per_step must be a multiple of algorithm.inner_steps * placement.num_learners = "
        f"{config.algorithm.inner_steps} * {learners} = {parts}, got {groups}; "
        f"use {groups - groups % parts or parts} or {groups + parts - groups % parts}",
    )


@rule
def trained_steps_fit(config: RunConfig) -> None:
    """The algorithm's window must lie within the sampler steps."""
    problem = config.algorithm.problem(config.rollout.num_steps)
    _require(problem is None, f"algorithm.{problem}")


@rule
def half_precision_needs_cuda(config: RunConfig) -> None:
    """float16 arithmetic is not offered on the CPU."""
    _require(
        not (config.model.dtype == "float16" and config.placement.device == "cpu"),
        "model.dtype float16 needs placement.device cuda; use float32 or bfloat16 on the CPU",
    )


@rule
def grid_fits_evaluation(config: RunConfig) -> None:
    """The image grid shows evaluation prompts."""
    _require(
        config.eval.grid_prompts <= config.eval.num_prompts,
        f"eval.grid_prompts must be at most eval.num_prompts = {config.eval.num_prompts}, "
        f"got {config.eval.grid_prompts}",
    )
