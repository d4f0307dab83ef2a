"""Every key of a reward training's configuration, and the rules across them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from flowrl.base.config_file import read_config
from flowrl.base.config_tree import ConfigError
from flowrl.base.embedded import POCKET
from flowrl.core.bucket_rules import bucket_fault
from rewards.data.source import DataSource, check_source


@dataclass
class RunSection:
    """What the training is called and where it writes."""

    name: str = ""  # empty: the config file's name and the time
    dir: str = "runs/reward-${run.name}"
    seed: int = 0
    overwrite: bool = False  # start anew in a directory that exists


@dataclass
class ModelSection:
    """The reward model that is trained, and what it starts from."""

    kind: Literal["dit_reward", "hpsv3"] = "dit_reward"
    path: str = POCKET  # dit_reward: a diffusers folder of a Stable Diffusion 3 model; hpsv3: an HPSv3 folder
    init: Literal["pretrained", "random"] = "pretrained"  # random weights are a baseline: what pretraining is worth
    mode: Literal["full", "lora", "frozen"] = "full"  # what learns beside the head
    lora_rank: int = 32
    precision: Literal["float32", "bfloat16"] = "float32"  # of the forward pass; weights stay float32 where they learn
    gradient_checkpointing: bool = False


@dataclass
class DiTRewardSection:
    """The head of a DiT-Reward and what it reads; the defaults are for SD3.5-Large."""

    layers: list[int] = field(default_factory=lambda: [15, 23, 28, 37])  # published (arXiv 2606.23626)
    sigmas: list[float] = field(default_factory=lambda: [0.05])  # inferred: the value was not published
    head_dims: list[int] = field(default_factory=lambda: [1536, 512])  # inferred from the published parameter count
    activation: Literal["gelu", "silu"] = "gelu"  # inferred
    feature_norm: bool = True  # inferred
    text_features: bool = False  # proposed by the paper as future work
    pooling: Literal["mean", "attention"] = "mean"  # published: mean


@dataclass
class DataSection:
    """The preference pairs: sources that are prepared once, or a prepared set."""

    store: str = ""  # folder of the prepared set; made from the sources where it is not there
    train: list[DataSource] = field(default_factory=list)
    validation: list[DataSource] = field(default_factory=list)
    share: float = 1.0  # train on the pairs of a random part of the prompts, for curves of accuracy against data
    image_size: int = 512  # images are brought to about this number of pixels squared, in buckets of aspect ratio
    bucket_step: int = 64  # pixels, by which the sides of the buckets differ
    max_aspect: float = 2.0
    max_sequence_length: int = 256  # T5 tokens; the same when the reward scores
    dtype: Literal["float32", "float16", "bfloat16"] = "bfloat16"  # in which latents and text conditions are stored
    encode_batch: int = 8  # images encoded at once
    device: Literal["auto", "cpu", "cuda"] = "auto"  # where the encoders run
    max_bad_share: float = 0.01  # of a source's rows that may be broken


@dataclass
class LossSection:
    """What is minimised."""

    kind: Literal["bradley_terry", "uncertainty"] = "bradley_terry"  # uncertainty: HPSv3's, two outputs
    ties: Literal["drop", "soft", "rao_kupper"] = "drop"
    draws: int = 1000  # of the uncertainty loss, per pair
    tie_threshold: float = 5.0  # of rao_kupper


@dataclass
class OptimSection:
    """AdamW, in comparisons per step over all devices."""

    lr_head: float = 1e-4  # inferred: neither rate was published
    lr_backbone: float = 2e-6  # inferred: that of HPSv3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    epochs: int = 2  # published: 2 to 3; 0 = as many as max_steps need
    max_steps: int = 0  # 0 = as many as the epochs hold
    batch_size: int = 64
    micro_batch_size: int = 4  # comparisons per forward pass and device
    warmup_ratio: float = 0.05  # published
    hold_ratio: float = 1.0  # share of the steps after which the rate falls along a cosine; 1 = never
    final_lr_share: float = 0.0
    ema_decay: float = 0.0  # 0 = the weights of the last step; otherwise their moving average is kept


@dataclass
class EvalSection:
    """Accuracy on the validation pairs."""

    every: int = 200  # steps; 0 = at the end alone
    max_comparisons: int = 0  # the first so many of each source; 0 = all
    batch_size: int = 32  # samples per forward pass and device


@dataclass
class CheckpointSection:
    """Resumable state."""

    every: int = 200  # steps
    keep: int = 2


@dataclass
class ExportSection:
    """The reward folder that a training leaves."""

    dtype: Literal["float32", "float16", "bfloat16"] = "bfloat16"
    whole: bool = True  # of a frozen or LoRA backbone: write it too, merged, and not only what differs from model.path
    centre: bool = True  # shift scores so that those of the validation samples average 0
    notes: str = ""  # for the model card


@dataclass
class RewardTrainConfig:
    """Everything that defines the training of a reward model."""

    run: RunSection = field(default_factory=RunSection)
    model: ModelSection = field(default_factory=ModelSection)
    dit_reward: DiTRewardSection = field(default_factory=DiTRewardSection)
    data: DataSection = field(default_factory=DataSection)
    loss: LossSection = field(default_factory=LossSection)
    optim: OptimSection = field(default_factory=OptimSection)
    eval: EvalSection = field(default_factory=EvalSection)
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    export: ExportSection = field(default_factory=ExportSection)


def load(path: Path | str, overrides: list[str] | None = None) -> RewardTrainConfig:
    """Read a YAML file over the defaults, then `key=value` overrides over both; raises ConfigError."""
    path = Path(path)
    name = f"{path.stem}-{datetime.now():%Y%m%d-%H%M%S}"
    config = read_config(RewardTrainConfig, path, overrides or [], name_key="run.name", name=name)
    check(config)
    return config


def check(config: RewardTrainConfig) -> None:
    """Apply the rules across keys; raises ConfigError at the first that is broken."""
    _check_numbers(config)
    model, loss = config.model, config.loss
    _require(
        config.optim.epochs > 0 or config.optim.max_steps > 0,
        "optim.epochs or optim.max_steps must be above 0, got 0 and 0",
    )
    _require(
        not (model.kind == "hpsv3" and model.mode != "full"),
        f"model.mode must be full for hpsv3, got {model.mode}; frozen and lora are for dit_reward",
    )
    _require(
        config.export.whole or (model.kind == "dit_reward" and model.mode != "full" and model.init == "pretrained"),
        "export.whole must be true unless model.mode is lora or frozen, on a pretrained backbone",
    )
    _require(
        not (model.kind == "hpsv3" and (model.init == "random" or model.gradient_checkpointing)),
        "model.init must be pretrained and model.gradient_checkpointing false for hpsv3; both are for dit_reward",
    )
    _require(
        not (model.init == "random" and model.mode == "lora"),
        "model.mode must be full or frozen where model.init is random, got lora",
    )
    _require(
        not (loss.kind == "uncertainty" and loss.ties == "rao_kupper"),
        "loss.ties must be drop or soft with loss.kind=uncertainty, got rao_kupper",
    )
    _require(
        not (model.kind == "hpsv3" and loss.kind != "uncertainty" and loss.ties == "rao_kupper"),
        "loss.ties must be drop or soft for hpsv3, got rao_kupper",
    )
    _require(
        bool(config.data.store.strip()),
        "data.store must name a folder: of a prepared set, or of one to be made from data.train and data.validation",
    )
    for part, sources in (("train", config.data.train), ("validation", config.data.validation)):
        for index, source in enumerate(sources):
            check_source(source, f"data.{part}[{index}]")
        titles = [source.title for source in sources]
        _require(
            len(set(titles)) == len(titles),
            f"data.{part}: each source must have a name of its own, got {', '.join(titles)}; set name",
        )


_AT_LEAST: dict[str, float] = {
    "run.seed": 0,
    "model.lora_rank": 1,
    "data.max_sequence_length": 1,
    "data.encode_batch": 1,
    "loss.draws": 1,
    "optim.lr_head": 0,
    "optim.lr_backbone": 0,
    "optim.weight_decay": 0,
    "optim.epochs": 0,
    "optim.max_steps": 0,
    "optim.batch_size": 1,
    "optim.micro_batch_size": 1,
    "eval.every": 0,
    "eval.max_comparisons": 0,
    "eval.batch_size": 1,
    "checkpoint.every": 1,
    "checkpoint.keep": 1,
}
_SHARES = (
    "data.max_bad_share",
    "optim.warmup_ratio",
    "optim.hold_ratio",
    "optim.final_lr_share",
    "optim.ema_decay",
)


def _check_numbers(config: RewardTrainConfig) -> None:
    for key, least in _AT_LEAST.items():
        value = _value(config, key)
        _require(value >= least, f"{key} must be at least {least:g}, got {value:g}")
    for key in _SHARES:
        value = _value(config, key)
        _require(0 <= value <= 1, f"{key} must lie in [0, 1], got {value:g}")
    data, keys = config.data, ("data.image_size", "data.bucket_step", "data.max_aspect")
    fault = bucket_fault(data.image_size, data.bucket_step, data.max_aspect, keys=keys)
    _require(not fault, fault)
    _require(0 < config.data.share <= 1, f"data.share must lie in (0, 1], got {config.data.share}")
    _require(config.optim.ema_decay < 1, f"optim.ema_decay must be below 1, got {config.optim.ema_decay}")
    betas = config.optim.betas
    _require(all(0 <= beta < 1 for beta in betas), f"optim.betas must lie in [0, 1), got {list(betas)}")
    _require(config.optim.clip_norm > 0, f"optim.clip_norm must be positive, got {config.optim.clip_norm}")
    _require(config.loss.tie_threshold > 1, f"loss.tie_threshold must be above 1, got {config.loss.tie_threshold}")


def _value(config: RewardTrainConfig, key: str) -> float:
    section, name = key.split(".")
    value: Any = getattr(getattr(config, section), name)
    return float(value)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
