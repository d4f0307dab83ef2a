"""Files of prompts: how many they hold, and whether that is what was published."""

from __future__ import annotations

from pathlib import Path

from flowrl.base.amounts import count
from flowrl.config import ConfigError
from flowrl.data import read_prompts
from flowrl.fetch.published import FetchError

_LEAST_SHARE = 0.9  # of the published number; a list may be mended, a page with an error has a line or two


def count_prompts(path: Path) -> int:
    """How many prompts a run reads of a file; raises FetchError when it can read none."""
    try:
        return len(read_prompts(path, "prompts"))
    except ConfigError as error:
        raise FetchError(error.problem) from None


def check_prompts(path: Path, name: str, published: int) -> None:
    """Raise FetchError when a file that arrived as `name` holds far fewer prompts than were published under it."""
    try:
        found = count_prompts(path)
    except FetchError:
        found = 0
    if found < _LEAST_SHARE * published:
        raise FetchError(
            f"{name}: holds {count(found, 'prompt')} where {published:,} were published, so something else was sent "
            "in its place; it was deleted. Open its address in a browser, or take it from a copy with --from FOLDER"
        )
