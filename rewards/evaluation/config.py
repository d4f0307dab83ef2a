"""Every key of an evaluation's configuration, with its type, default and rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from omegaconf import MISSING

from flowrl.base.config_file import read_config
from flowrl.base.config_tree import ConfigError, did_you_mean
from flowrl.core.bucket_rules import bucket_fault
from rewards.data.source import DataSource, check_source
from rewards.evaluation.accuracy import PROTOCOLS, find_protocol
from rewards.evaluation.published import TEST_SETS

_OF_EVALUATION = ("format", "path", "images", "name", "min_confidence", "categories")  # keys of a source; others not


@dataclass
class RewardEntry:
    """One reward that is evaluated."""

    name: str = MISSING  # as in a run's configuration: built in, an entry point, or package.module:Class
    label: str = ""  # what tables call it; empty: the name
    options: dict[str, Any] = field(default_factory=dict)
    # Of the scores in the softmax of tie_aware: 1 for PickScore, whose scores are logits; 100 for a plain CLIP cosine.
    probability_scale: float = 1.0

    @property
    def title(self) -> str:
        """What tables call it."""
        return self.label or self.name


@dataclass
class BenchmarkEntry:
    """One set of judged comparisons."""

    name: str = MISSING
    sources: list[DataSource] = field(default_factory=list)
    prepared: str = ""  # in place of sources: the folder of a prepared set, with its own latents and conditions
    pair_sources: list[str] = field(default_factory=list)  # of a prepared set: the sources whose pairs count; [] = all
    protocols: list[str] = field(default_factory=lambda: ["pairs"])  # the first is the one of the main table
    validation: list[DataSource] = field(default_factory=list)  # of tie-aware protocols on sources: for thresholds
    test_set: str = ""  # of the published figures it is shown beside: image_reward, pickscore, hpdv2, hpdv3
    max_comparisons: int = 0  # the first so many usable ones of each source, or source of pairs; 0 = all


@dataclass
class EncoderSection:
    """The policy's encoders, for rewards that read latents; the same as in their training."""

    family: str = "sd3"
    path: str = ""  # a diffusers folder, or "pocket"; empty: pixel rewards and prepared sets alone
    max_sequence_length: int = 256  # T5 tokens
    # Images are brought to about so many pixels squared, in buckets of aspect ratio; 0 = not; null = as in the rewards'
    # training, as are the two below.
    image_size: int | None = None
    bucket_step: int | None = None  # pixels, by which the sides of the buckets differ
    max_aspect: float | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the text encoders; the VAE is float32


@dataclass
class EvaluationConfig:
    """A whole evaluation."""

    rewards: list[RewardEntry] = MISSING
    benchmarks: list[BenchmarkEntry] = MISSING
    encoders: EncoderSection = field(default_factory=EncoderSection)
    out: str = "runs/reward-eval"  # a folder: result.json, result.md, config.yaml, scores/
    draws: int = 2000  # of the bootstrap
    seed: int = 0  # of the bootstrap, and of the noise that latent rewards draw
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is a GPU
    together: bool = True  # all rewards in memory at once; false loads one after the other and reads images again
    images_per_chunk: int = 128  # read and scored together; as many are lost when an evaluation is interrupted
    max_bad: int = 1000  # rows, or images, of one source that may be unusable


def load(path: Path, overrides: list[str]) -> EvaluationConfig:
    """Read a YAML file over the defaults and overrides over both, and check it; raises ConfigError."""
    config = read_config(EvaluationConfig, path, overrides)
    check(config)
    return config


def check(config: EvaluationConfig) -> None:
    """Raise ConfigError, naming the key, when the configuration cannot be run."""
    for key, value, least in (
        ("draws", config.draws, 1),
        ("images_per_chunk", config.images_per_chunk, 1),
        ("max_bad", config.max_bad, 0),
        ("encoders.max_sequence_length", config.encoders.max_sequence_length, 1),
    ):
        _require(value >= least, f"{key} must be at least {least}, got {value}")
    encoders, keys = config.encoders, ("encoders.image_size, unless 0,", "encoders.bucket_step", "encoders.max_aspect")
    fault = bucket_fault(encoders.image_size or None, encoders.bucket_step, encoders.max_aspect, keys=keys)
    _require(not fault, fault)
    _require(bool(config.rewards), "rewards must name at least one reward, got none")
    _require(bool(config.benchmarks), "benchmarks must name at least one benchmark, got none")
    _check_unique([reward.title for reward in config.rewards], "rewards", "label")
    _check_unique([benchmark.name for benchmark in config.benchmarks], "benchmarks", "name")
    for index, reward in enumerate(config.rewards):
        scale = reward.probability_scale
        _require(scale > 0, f"rewards[{index}].probability_scale must be positive, got {scale}")
    for index, benchmark in enumerate(config.benchmarks):
        _check_benchmark(benchmark, f"benchmarks[{index}]")


def _check_benchmark(benchmark: BenchmarkEntry, key: str) -> None:
    _require(benchmark.max_comparisons >= 0, f"{key}.max_comparisons must be at least 0")
    _require(bool(benchmark.protocols), f"{key}.protocols must name at least one protocol, got none")
    for index, name in enumerate(benchmark.protocols):
        find_protocol(name, key=f"{key}.protocols[{index}]")
    _check_unique(benchmark.protocols, f"{key}.protocols", "name")
    test_set = benchmark.test_set
    known = not test_set or test_set in TEST_SETS
    _require(known, f"{key}.test_set: unknown test set {test_set!r}; {did_you_mean(test_set, TEST_SETS)}")
    _require(
        bool(benchmark.sources) != bool(benchmark.prepared),
        f"{key} must name either sources or a prepared set, got {'both' if benchmark.prepared else 'neither'}",
    )
    _require(
        bool(benchmark.prepared) or not benchmark.pair_sources,
        f"{key}.pair_sources is for a prepared set, and must be left out here, got {benchmark.pair_sources}",
    )
    needing = [name for name in benchmark.protocols if PROTOCOLS[name].tie_measure]
    _require(
        not benchmark.prepared or not needing,
        f"{key}.protocols: {' and '.join(needing)} need validation pairs, which a prepared set does not have; name "
        "sources and validation, or other protocols",
    )
    _require(
        not benchmark.prepared or not benchmark.validation,
        f"{key}.validation is for sources, and must be left out beside a prepared set",
    )
    _require(
        bool(benchmark.validation) or not needing,
        f"{key}.validation must name a source: {' and '.join(needing)} find their thresholds on other pairs than they "
        "are tested on",
    )
    for name, sources in (("sources", benchmark.sources), ("validation", benchmark.validation)):
        for index, source in enumerate(sources):
            _check_source(source, f"{key}.{name}[{index}]")


def _check_source(source: DataSource, key: str) -> None:
    check_source(source, key)
    for one in fields(DataSource):
        value = vars(source)[one.name]
        _require(
            one.name in _OF_EVALUATION or value == one.default,
            f"{key}.{one.name} is for training, and must be left out here, got {value!r}",
        )


def _check_unique(names: Sequence[str], key: str, what: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    _require(not twice, f"{key}: the {what} {twice[0] if twice else ''!r} must be there once; give each its own {what}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
