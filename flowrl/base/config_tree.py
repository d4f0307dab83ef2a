"""Checks keys and values, as read from YAML, against configuration dataclasses: errors that say how to mend the file.

Nothing here knows which sections there are. The YAML library checks types too, but its messages name its own classes.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from omegaconf import MISSING as REQUIRED

from flowrl.base.errors import UserError

_SCALARS = {
    int: "an integer",
    float: "a finite number",
    bool: "true or false",
    str: "text (quote a number)",
    NoneType: "null",
}


class ConfigError(UserError, ValueError):
    """A configuration that cannot be run; the message names the key, the rule, the value and the fix."""


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with `message` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def check_tree(schema: type, tree: object) -> None:
    """Raise ConfigError unless each key of `tree` is a field of the dataclass `schema` and each value fits its type."""
    if not isinstance(tree, dict):
        raise ConfigError(f"must hold sections with keys, such as {_example_keys(schema)}, got {_shown(tree)}")
    _check_section(schema, tree, "", all_keys(schema))


def all_keys(schema: type, prefix: str = "") -> dict[str, Any]:
    """The full keys of a dataclass and of its nested sections, each with its type."""
    keys: dict[str, Any] = {}
    for name, kind in get_type_hints(schema).items():
        full = _joined(prefix, name)
        keys |= all_keys(kind, full) if isinstance(kind, type) and is_dataclass(kind) else {full: kind}
    return keys


def did_you_mean(given: str, valid: Iterable[str]) -> str:
    """The end of an error about an unknown name: the closest valid one or, when none is close, all of them."""
    names = list(valid)
    close = difflib.get_close_matches(given, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(names)}"


def _check_section(schema: type, tree: dict[Any, Any], prefix: str, known: dict[str, Any]) -> None:
    kinds = get_type_hints(schema)
    for name, value in tree.items():
        key = _joined(prefix, str(name))
        if name not in kinds:
            raise ConfigError(f"unknown key {key!r}; {_closest_key(str(name), prefix, kinds, known)}")
        _check_value(kinds[name], value, key, known)


def _closest_key(name: str, prefix: str, siblings: Iterable[str], known: dict[str, Any]) -> str:
    elsewhere = [key for key in known if key.endswith(f".{name}")]
    if elsewhere:
        return f"did you mean {' or '.join(map(repr, elsewhere))}?"
    close = difflib.get_close_matches(name, siblings, n=1)
    if close:
        return f"did you mean {_joined(prefix, close[0])!r}?"
    return f"valid: {', '.join(_joined(prefix, sibling) for sibling in siblings)}"


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _check_value(kind: Any, value: object, key: str, known: dict[str, Any]) -> None:
    if isinstance(value, str) and "${" in value:
        return  # a reference to another key: resolved, and its type checked, when all files are merged
    if isinstance(kind, type) and is_dataclass(kind):
        if not isinstance(value, dict):
            raise ConfigError(f"{key} must hold keys, such as {_example_keys(kind)}, got {_shown(value)}")
        _check_section(kind, value, key, known)
    elif get_origin(kind) in (list, tuple) and isinstance(value, list) and _length_fits(kind, value):
        for index, item in enumerate(value):
            _check_value(get_args(kind)[0], item, f"{key}[{index}]", known)
            _check_required(get_args(kind)[0], item, f"{key}[{index}]")
    elif not _fits(kind, value):
        raise ConfigError(f"{key} must be {_described(kind)}, got {_shown(value)}")


def _check_required(kind: Any, item: object, key: str) -> None:
    if not (is_dataclass(kind) and isinstance(item, dict)):
        return
    for one in fields(kind):
        if one.default == REQUIRED and one.name not in item:
            raise ConfigError(f"{key}.{one.name} must be set, got {_shown(item)}")


def _length_fits(kind: Any, value: list[Any]) -> bool:
    return get_origin(kind) is list or len(value) == len(get_args(kind))


def _fits(kind: Any, value: object) -> bool:
    if get_origin(kind) is UnionType:  # such as int | None
        return any(_fits(one, value) for one in get_args(kind))
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(isinstance(name, str) for name in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return kind is Any or (isinstance(kind, type) and isinstance(value, kind))


def _described(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return " or ".join(map(_described, inner))
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is dict:
        return "keys and values, such as {key: value}"
    if origin is tuple:
        return f"a list of {len(inner)}, each {_described(inner[0])}"
    if origin is list and is_dataclass(inner[0]):
        required = ", ".join(f"{one.name}: ..." for one in fields(inner[0]) if one.default == REQUIRED)
        return f"a whole list, of entries such as {{{required}}}"
    if origin is list:
        return "a whole list, such as [a, b]"
    return _SCALARS.get(kind, str(kind))


def _example_keys(schema: type) -> str:
    names = [one.name for one in fields(schema)]
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _shown(value: object) -> str:
    return "nothing" if value is None else repr(value)
