"""Files of prompts: how many they hold, and whether that is what was published."""

from __future__ import annotations

from pathlib import Path

from flowrl.fetch.published import FetchError

_LEAST_SHARE = 0.9  # of the published number; a list may be mended, a page with an error has a line or two


def count_prompts(path: Path) -> int:
    """The lines of a UTF-8 file that hold something, as a run reads it; raises FetchError for another kind of file."""
    try:
        return sum(1 for line in path.read_text(encoding="utf-8").split("\n") if line.strip())
    except UnicodeDecodeError:
        raise FetchError(f"{path}: is not UTF-8 text, so not a file of prompts") from None


def check_prompts(path: Path, name: str, published: int) -> None:
    """Raise FetchError when a file that arrived as `name` holds far fewer prompts than were published under it."""
    found = count_prompts(path)
    if found < _LEAST_SHARE * published:
        raise FetchError(
            f"{name}: holds {found:,} prompts where {published:,} were published, so something else was sent in its "
            "place; it was deleted. Open its address in a browser, or take it from a copy with --from FOLDER"
        )
