"""Whether tensors are just those of a module: what is found out, and said, of every file of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

import torch

from flowrl.base.errors import CheckpointError

_NAMED = 3
_ADVICE = "copy it again, or export it whole"


def check_tensors(module: torch.nn.Module, shapes: Mapping[str, tuple[int, ...]], source: Path) -> None:
    """Raise CheckpointError unless tensors of these names and shapes are just those of the module's state dict."""
    wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    refuse_tensors(
        source,
        missing=wanted.keys() - shapes.keys(),
        unexpected=shapes.keys() - wanted.keys(),
        misshapen={key: (shape, shapes[key]) for key, shape in wanted.items() if shapes.get(key, shape) != shape},
    )


def refuse_tensors(
    source: Path,
    *,
    missing: AbstractSet[str],
    unexpected: AbstractSet[str],
    misshapen: Mapping[str, tuple[Sequence[int], Sequence[int]]],
) -> None:
    """Raise CheckpointError when the tensors of a source differ from a model's; of a shape the wanted and the found."""
    if missing or unexpected:
        raise CheckpointError(
            f"{source}: its tensors are not those of the model: missing {_first(missing)}, "
            f"unexpected {_first(unexpected)}",
            advice=_ADVICE,
        )
    for key, (wanted, found) in misshapen.items():
        raise CheckpointError(f"{source}: {key} must have shape {list(wanted)}, got {list(found)}", advice=_ADVICE)


def _first(keys: AbstractSet[str]) -> str:
    if not keys:
        return "none"
    return ", ".join(sorted(keys)[:_NAMED]) + (f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else "")
