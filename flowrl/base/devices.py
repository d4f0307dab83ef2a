"""Which device a command computes on."""

from __future__ import annotations

import torch

from flowrl.base.errors import UserError


def pick_device(name: str, *, key: str = "device") -> str:
    """The torch device "cpu" or "cuda" that `name` means; "auto" is cuda where there is a GPU, else cpu.

    Raises UserError, which begins with `key`, when `name` is something else, or cuda and there is no GPU.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"{key} must be auto, cpu or cuda, got {name!r}")
    here = torch.cuda.is_available()
    if name == "cuda" and not here:
        raise UserError(
            f"{key} is cuda, but torch {torch.__version__} finds no GPU that it can use",
            advice="take cpu, or install a torch for this machine's driver",
        )
    return "cuda" if here and name != "cpu" else "cpu"
