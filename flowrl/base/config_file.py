"""From a YAML file and overrides to an instance of a configuration's dataclass, with errors that say how to mend them.

Needs no torch, so that a configuration is read and checked at once.
"""

from __future__ import annotations

import difflib
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from flowrl.base.config_tree import ConfigError, all_keys, check_tree

Schema = TypeVar("Schema")


def read_config(
    schema: type[Schema],
    path: Path,
    overrides: list[str],
    *,
    name_key: str = "",
    name: str = "",
    check: Callable[[Schema], None] = lambda config: None,
) -> Schema:
    """Read a YAML file over the defaults of `schema`, then `key=value` overrides over both; raises ConfigError.

    What `check` raises of the whole is told with the file's name.
    Where `name_key` (such as "run.name") is empty after that, it becomes `name`, before references to it are resolved.
    """
    tree = _read_file(schema, path)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), tree)
        for override in overrides:
            merged = OmegaConf.merge(merged, _read_override(schema, override, OmegaConf.to_container(merged)))
        if name_key and not OmegaConf.select(merged, name_key):
            OmegaConf.update(merged, name_key, name)
        config = OmegaConf.to_object(merged)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{path}: {error.full_key} must be set") from None
    except OmegaConfBaseException as error:  # what is left after check_tree: references to other keys
        raise ConfigError(f"{path}: {error.full_key}: {str(error).splitlines()[0]}") from None
    assert isinstance(config, schema)
    try:
        check(config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return config


def parse_value(text: str, *, key: str) -> Any:
    """What a value after `key=` on a command line means: YAML as configurations are read, where 1e-3 is a number.

    Raises ConfigError, which begins with `key`, when it is not valid YAML.
    """
    try:
        parsed: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
    except yaml.YAMLError:
        raise ConfigError(f"{key}: the value {text!r} is not valid YAML; put it in quotes") from None
    return parsed["value"]


def parse_options(
    words: Sequence[str], *, rule: str = "an option of a reward must read key=value, such as batch_size=8"
) -> dict[str, Any]:
    """Options from words `key=value`, the values YAML; raises ConfigError with the `rule` for any other word."""
    options = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not (equals and key.isidentifier()):
            raise ConfigError(f"{rule}, got {word!r}")
        options[key] = parse_value(text, key=key)
    return options


def dump_config(config: Any) -> str:
    """The resolved configuration as YAML."""
    return str(OmegaConf.to_yaml(OmegaConf.structured(config), resolve=True))


def flat_config(config: Any) -> dict[str, Any]:
    """Every full key of a configuration with its resolved value."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, node: Any) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                walk(f"{prefix}.{key}" if prefix else str(key), value)
        else:
            flat[prefix] = node

    walk("", OmegaConf.to_container(OmegaConf.structured(config), resolve=True))
    return flat


def diff_configs(left: Any, right: Any) -> dict[str, tuple[Any, Any]]:
    """The keys in which two configurations differ, with both values."""
    flat_left, flat_right = flat_config(left), flat_config(right)
    keys = sorted(flat_left.keys() | flat_right.keys())
    return {key: (flat_left.get(key), flat_right.get(key)) for key in keys if flat_left.get(key) != flat_right.get(key)}


def top_level_keys(path: Path) -> set[str]:
    """The sections that a YAML file names, by which one kind of configuration is told from another; empty if none."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return set()  # reading it as a configuration says what is wrong
    return set(map(str, tree)) if isinstance(tree, dict) else set()


def _read_file(schema: type, path: Path) -> dict[Any, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        tree = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))
        check_tree(schema, tree)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file{_closest_config(path)}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text ({error}); save it as UTF-8") from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split()).replace('"<file>"', path.name)
        raise ConfigError(f"{path}: is not valid YAML: {reason}") from None
    except IsADirectoryError:
        inside = " or ".join(sorted(map(str, path.rglob("*.yaml")))[:3])
        raise ConfigError(
            f"{path}: is a folder; " + (f"name one file, {inside}" if inside else "it has no .yaml")
        ) from None
    except OSError as error:  # no permission, or a file that is one number and no more
        raise ConfigError(
            f"{path}: cannot be read as a config file: {error.strerror or 'it must hold sections with keys'}"
        ) from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    assert isinstance(tree, dict)
    return tree


def _read_override(schema: type, override: str, before: object) -> dict[Any, Any]:
    """What an override changes in `before`, the keys and values so far."""
    key, equals, text = override.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.-?\w+|\[-?\d+\])*", key):
        raise ConfigError(f"override {override!r} must read key=value, for example run.steps=20")
    value = parse_value(text, key=key)
    if all_keys(schema).get(key) is str and not isinstance(value, str | list | dict):
        value = text  # run.name=007 means what it says, not the number 7
    tree = _nested(re.findall(r"-?\w+", key), value, before, "")
    check_tree(schema, tree)
    assert isinstance(tree, dict)
    return tree


def _nested(parts: Sequence[str], value: object, before: object, key: str) -> object:
    """The value under the keys `parts`; of a list, which is merged as a whole, all entries, one of them changed."""
    if not parts:
        return value
    name, *rest = parts
    if not isinstance(before, list | tuple):
        inner = before.get(name) if isinstance(before, dict) else None
        return {name: _nested(rest, value, inner, f"{key}.{name}" if key else name)}
    if not name.isdecimal() or int(name) >= len(before):
        those = f"0 to {len(before) - 1}" if before else "none, it is empty"
        rule = "the entries of a list count from 0" if name.startswith("-") else "a list has entries by number"
        raise ConfigError(f"{key}[{name}]: {rule}, here {those}; to add one, give {key} whole")
    index = int(name)
    entry = _nested(rest, value, before[index], f"{key}[{index}]")
    if isinstance(entry, dict) and isinstance(before[index], dict) and rest:
        entry = OmegaConf.to_container(OmegaConf.merge(before[index], entry))
    return [*before[:index], entry, *before[index + 1 :]]


def _closest_config(path: Path) -> str:
    profile = sorted(map(str, (Path("configs") / path.name).glob("*.yaml")))
    if profile:
        return f"; {path.name} is a profile: name one of its files, {' or '.join(profile)}"
    others = [str(other) for other in Path("configs").glob("**/*.yaml")]
    close = difflib.get_close_matches(str(path), others, n=1, cutoff=0.8)
    return f"; did you mean {close[0]}?" if close else ""
