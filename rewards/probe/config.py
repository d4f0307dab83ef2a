"""Every key of a probe's configuration, with its type, default and rules."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Literal

from flowrl.base.config_file import read_config
from flowrl.base.config_tree import ConfigError
from flowrl.base.embedded import POCKET

INPUT = -1  # the number of the layer that is no block: the patch embeddings that enter block 0


@dataclass
class BackboneSection:
    """The frozen backbone that is probed."""

    path: str = POCKET  # a diffusers folder of a Stable Diffusion 3 model
    init: Literal["pretrained", "random"] = "pretrained"  # random weights: what the architecture alone is worth
    sigma: float = 0.05  # noise level of the input; inferred: the value was not published
    precision: Literal["float32", "bfloat16"] = "float32"
    batch_size: int = 32  # samples per forward pass


@dataclass
class StoreSection:
    """The prepared preference set; its `train` part trains the heads, its `validation` part measures them."""

    store: str = ""  # a folder as `flowrl reward prepare` makes it; features of all of its samples are held in memory


@dataclass
class HeadSection:
    """The heads, all of one shape, each trained on its own layers with Bradley-Terry and AdamW."""

    dims: list[int] = field(default_factory=list)  # hidden widths, with GELU; empty: a linear head
    steps: int = 1000
    lr: float = 1e-3  # falls to 0 along a cosine
    weight_decay: float = 0.01
    batch_size: int = 64  # comparisons
    seeds: int = 3  # heads per layer or pair, of other first weights and another order of the data
    at_once: int = 64  # heads that are trained as one batch; more take more memory


@dataclass
class ProbeConfig:
    """Everything that defines a probe."""

    model: BackboneSection = field(default_factory=BackboneSection)
    data: StoreSection = field(default_factory=StoreSection)
    head: HeadSection = field(default_factory=HeadSection)
    layers: list[int] = field(default_factory=list)  # blocks, -1 for the input of block 0; empty: that and all blocks
    pairs: Literal["all", "listed"] = "all"  # of the layers
    listed_pairs: list[list[int]] = field(default_factory=list)  # with pairs=listed; none: the depth curve alone
    out: str = "runs/reward-probe"  # a folder: result.json, table.md, the plots, config.yaml, features/
    draws: int = 2000  # of the bootstrap over prompts
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is a GPU


def load(path: Path, overrides: list[str]) -> ProbeConfig:
    """Read a YAML file over the defaults and overrides over both, and check it; raises ConfigError."""
    config = read_config(ProbeConfig, path, overrides)
    check(config)
    return config


def check(config: ProbeConfig) -> None:
    """Raise ConfigError, naming the key, when the configuration cannot be run."""
    model, head = config.model, config.head
    for key, value, least in (
        ("model.batch_size", model.batch_size, 1),
        ("head.steps", head.steps, 1),
        ("head.weight_decay", head.weight_decay, 0),
        ("head.batch_size", head.batch_size, 1),
        ("head.seeds", head.seeds, 1),
        ("head.at_once", head.at_once, 1),
        ("draws", config.draws, 1),
        ("seed", config.seed, 0),
    ):
        _require(value >= least, f"{key} must be at least {least}, got {value}")
    _require(head.lr > 0, f"head.lr must be positive, got {head.lr}")
    _require(all(dim > 0 for dim in head.dims), f"head.dims must be positive widths, got {head.dims}")
    _require(0 <= model.sigma < 1, f"model.sigma must lie in [0, 1), got {model.sigma}")
    _require(bool(config.data.store.strip()), "data.store must name the folder of a prepared preference set, got ''")
    layers = config.layers
    ascending = layers == sorted(set(layers)) and all(layer >= INPUT for layer in layers)
    _require(ascending, f"layers must be ascending block numbers, {INPUT} for the input of block 0, got {layers}")
    _require(
        config.pairs == "listed" or not config.listed_pairs,
        "listed_pairs is read with pairs=listed; set that, or leave it out",
    )


def chosen_layers(config: ProbeConfig, num_blocks: int) -> tuple[int, ...]:
    """The layers to probe of a backbone of so many blocks; raises ConfigError when one does not exist."""
    layers = tuple(config.layers) or tuple(range(INPUT, num_blocks))
    _require(
        layers[-1] < num_blocks,
        f"layers: {layers[-1]} does not exist in a backbone of {num_blocks} blocks; use {INPUT} to {num_blocks - 1}",
    )
    return layers


def chosen_pairs(config: ProbeConfig, layers: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The pairs to probe, each in ascending order; raises ConfigError when one is not of two of the layers."""
    if config.pairs == "all":
        return list(combinations(layers, 2))
    found = []
    for index, pair in enumerate(config.listed_pairs):
        is_pair = len(pair) == 2 and pair[0] < pair[1] and set(pair) <= set(layers)
        _require(is_pair, f"listed_pairs[{index}] must be two of the layers {list(layers)}, ascending, got {pair}")
        found.append(tuple(pair))
    return found


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
