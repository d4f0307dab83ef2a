"""From a YAML file and overrides to a typed run configuration.

The keys are in `flowrl.config_sections`, the rules across them in `flowrl.config_rules`. Nothing here needs torch, so a
configuration is read and checked at once.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from flowrl.algorithms.configs import FlowGRPOConfig
from flowrl.base.config_file import diff_configs, dump_config, read_config
from flowrl.base.config_tree import ConfigError
from flowrl.config_rules import RULES, check
from flowrl.config_sections import (
    CUTTING,
    CheckpointSection,
    DataSection,
    EvalSection,
    GateSection,
    LearnerStrategy,
    ModelSection,
    OptimSection,
    PlacementSection,
    RewardSpec,
    RewardsSection,
    RolloutSection,
    RunConfig,
    RunSection,
)

__all__ = [
    "CUTTING",
    "RULES",
    "CheckpointSection",
    "ConfigError",
    "DataSection",
    "EvalSection",
    "FlowGRPOConfig",
    "GateSection",
    "LearnerStrategy",
    "ModelSection",
    "OptimSection",
    "PlacementSection",
    "RewardSpec",
    "RewardsSection",
    "RolloutSection",
    "RunConfig",
    "RunSection",
    "check",
    "diff",
    "dump",
    "load",
    "unique_name",
]


def load(path: Path | str, overrides: list[str] | None = None) -> RunConfig:
    """Read a YAML file over the defaults, then `key=value` overrides over both; raises ConfigError."""
    path = Path(path)
    config = read_config(RunConfig, path, overrides or [], name_key="run.name", name=unique_name(path.stem))
    check(config)
    return config


def unique_name(stem: str) -> str:
    """A name for a run that starts now, such as ditreward-20260131-154500."""
    return f"{stem}-{datetime.now():%Y%m%d-%H%M%S}"


def dump(config: RunConfig) -> str:
    """The resolved configuration as YAML."""
    return dump_config(config)


def diff(left: RunConfig, right: RunConfig) -> dict[str, tuple[Any, Any]]:
    """The keys in which two configurations differ, with both values."""
    return diff_configs(left, right)
