"""Whether the files of a tokenizer are there: without a vocabulary a library may make an empty one."""

from __future__ import annotations

from pathlib import Path

from flowrl.base.errors import CheckpointError


def check_tokenizer_files(folder: Path, choices: tuple[tuple[str, ...], ...], *, advice: str) -> None:
    """Raise CheckpointError unless a folder has all files of one of the choices."""
    if not any(all((folder / name).is_file() for name in names) for names in choices):
        wanted = ", or ".join(" and ".join(names) for names in choices)
        raise CheckpointError(f"{folder}: the tokenizer is missing: it must hold {wanted}", advice=advice)
