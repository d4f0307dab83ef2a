"""Reads JSON files of any length row by row: one array of objects, or one object on each line (JSONL)."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ijson

from flowrl.base.errors import UserError
from rewards.data.comparison import BadRow, Comparison, ImageRef, Row

_BOM = b"\xef\xbb\xbf"
_SHOWN = 80  # characters of a value in a message


class RowError(ValueError):
    """A row that does not fit its format; the message names the key, the rule and what was found."""


@dataclass(frozen=True, kw_only=True)
class JsonRow:
    """One object of a file, with getters that raise RowError where a value is missing or of another kind.

    Example: ``JsonRow(origin="train.json[17]", values={"prompt": "a cat"}, folder="/data/images")``
    """

    origin: str
    values: Mapping[str, Any]
    folder: str  # absolute; where relative image paths start

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def text(self, key: str) -> str:
        """A string."""
        return _text(self._value(key), key)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings."""
        return tuple(_text(value, f"{key}[{index}]") for index, value in enumerate(self._list(key)))

    def number(self, key: str, default: float | None = None) -> float:
        """A number; with a default, that one where the key is missing or null."""
        if default is not None and self.values.get(key) is None:
            return default
        return _number(self._value(key), key)

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of numbers."""
        return tuple(_number(value, f"{key}[{index}]") for index, value in enumerate(self._list(key)))

    def flag(self, key: str) -> bool:
        """True or false."""
        value = self._value(key)
        if not isinstance(value, bool):
            raise RowError(f"{key} must be true or false, got {_shown(value)}")
        return value

    def image(self, path: str) -> ImageRef:
        """The image file at `path`, which is relative to the row's image folder unless absolute."""
        if not path:
            raise RowError("an image path is empty")
        return ImageRef(path=os.path.normpath(os.path.join(self.folder, path)))

    def _value(self, key: str) -> Any:
        if key not in self.values:
            raise RowError(f"has no {key!r}")
        return self.values[key]

    def _list(self, key: str) -> list[Any]:
        value = self._value(key)
        if not isinstance(value, list):
            raise RowError(f"{key} must be a list, got {_shown(value)}")
        return value


def read_comparisons(path: Path, images: Path, parse: Callable[[JsonRow], Comparison]) -> Iterator[Row]:
    """What `parse` makes of each row of a file; rows that are no object, or that it rejects, become bad rows.

    `images` is where relative image paths start. Raises UserError when the file is missing, or cut off or damaged in
    the middle of an array, after the rows before that.
    """
    folder = os.path.abspath(images)
    for origin, values in _objects(path):
        if isinstance(values, str):
            yield BadRow(origin=origin, reason=values)
            continue
        try:
            yield parse(JsonRow(origin=origin, values=values, folder=folder))
        except RowError as error:
            yield BadRow(origin=origin, reason=str(error))


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """The origin of each row, and its values or, if it is no object, the complaint."""
    try:
        with path.open("rb") as file:
            start = len(_BOM) if file.read(len(_BOM)) == _BOM else 0
            file.seek(start)
            is_array = _first_character(file) == b"["
            file.seek(start)
            yield from _array(path, file) if is_array else _lines(path, file)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _first_character(file: BinaryIO) -> bytes:
    while (character := file.read(1)).isspace():
        pass
    return character


def _array(path: Path, file: BinaryIO) -> Iterator[tuple[str, dict[str, Any] | str]]:
    rows = 0
    try:
        for value in ijson.items(file, "item"):
            yield f"{path.name}[{rows}]", _object(value)
            rows += 1
    except ijson.JSONError as error:
        problem = str(error).splitlines()[0].strip()
        raise UserError(
            f"{path}: cut off or damaged after {rows} whole rows, before byte {file.tell()} of "
            f"{path.stat().st_size} ({problem}); copy it again"
        ) from None


def _lines(path: Path, file: BinaryIO) -> Iterator[tuple[str, dict[str, Any] | str]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            values = _object(json.loads(line))
        except (ValueError, RecursionError) as error:
            values = f"not a line of JSON: {error}"
        yield f"{path.name}:{number}", values


def _object(value: Any) -> dict[str, Any] | str:
    return value if isinstance(value, dict) else f"must be a JSON object, got {_shown(value)}"


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise RowError(f"{key} must be text, got {_shown(value)}")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise RowError(f"{key} holds half a character (a lone surrogate)")
    return value


def _number(value: Any, key: str) -> float:
    # Numbers of an array come as Decimal, so that a long one does not end the reading of the file.
    try:
        number = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise RowError(f"{key} must be a finite number, got {_shown(value)}")
    return number


def _shown(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
