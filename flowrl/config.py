"""From a YAML file and overrides to a typed run configuration.

The keys are in `flowrl.config_sections`, the rules across them in `flowrl.config_rules`. Nothing here needs torch, so a
configuration is read and checked at once.
"""

from __future__ import annotations

import difflib
import io
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flowrl.algorithms.configs import FlowGRPOConfig
from flowrl.config_rules import RULES, check
from flowrl.config_sections import (
    POCKET,
    CheckpointSection,
    DataSection,
    EvalSection,
    GateSection,
    ModelSection,
    OptimSection,
    PlacementSection,
    RewardSpec,
    RewardsSection,
    RolloutSection,
    RunConfig,
    RunSection,
)
from flowrl.config_tree import ConfigError, all_keys, check_tree

__all__ = [
    "POCKET",
    "RULES",
    "CheckpointSection",
    "ConfigError",
    "DataSection",
    "EvalSection",
    "FlowGRPOConfig",
    "GateSection",
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
    trees = [_read_file(path), *map(_read_override, overrides or [])]
    try:
        merged = OmegaConf.merge(OmegaConf.structured(RunConfig), *trees)
        if not merged.run.name:
            merged.run.name = unique_name(path.stem)
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:  # what is left after check_tree: references to other keys
        raise ConfigError(f"{path}: {error.full_key}: {str(error).splitlines()[0]}") from None
    assert isinstance(config, RunConfig)
    check(config)
    return config


def unique_name(stem: str) -> str:
    """A name for a run that starts now, such as ditreward-20260131-154500."""
    return f"{stem}-{datetime.now():%Y%m%d-%H%M%S}"


def _read_file(path: Path) -> dict[Any, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        tree = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))
        check_tree(RunConfig, tree)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file{_closest_config(path)}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text ({error}); save it as UTF-8") from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split()).replace('"<file>"', path.name)
        raise ConfigError(f"{path}: is not valid YAML: {reason}") from None
    except OSError as error:  # a directory, no permission, or a file that is one number and no more
        raise ConfigError(
            f"{path}: cannot be read as a config file: {error.strerror or 'it must hold sections with keys'}"
        ) from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    assert isinstance(tree, dict)
    return tree


def _read_override(override: str) -> dict[Any, Any]:
    key, equals, text = override.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+)*", key):
        raise ConfigError(f"override {override!r} must read key=value, for example run.steps=20")
    try:
        parsed: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
    except yaml.YAMLError:
        raise ConfigError(f"{key}: the value {text!r} is not valid YAML; put it in quotes") from None
    tree = parsed["value"]
    if all_keys(RunConfig).get(key) is str and not isinstance(tree, str | list | dict):
        tree = text  # run.name=007 means what it says, not the number 7
    for name in reversed(key.split(".")):
        tree = {name: tree}
    check_tree(RunConfig, tree)
    return dict(tree)


def _closest_config(path: Path) -> str:
    others = [str(other) for other in Path("configs").glob("**/*.yaml")]
    close = difflib.get_close_matches(str(path), others, n=1, cutoff=0.7)
    return f"; did you mean {close[0]}?" if close else ""


def dump(config: RunConfig) -> str:
    """The resolved configuration as YAML."""
    return str(OmegaConf.to_yaml(OmegaConf.structured(config), resolve=True))


def diff(left: RunConfig, right: RunConfig) -> dict[str, tuple[Any, Any]]:
    """The keys in which two configurations differ, with both values."""
    flat_left, flat_right = _flat(left), _flat(right)
    keys = sorted(flat_left.keys() | flat_right.keys())
    return {key: (flat_left.get(key), flat_right.get(key)) for key in keys if flat_left.get(key) != flat_right.get(key)}


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
