"""Loads one network of a diffusers folder, and takes it only when all of its weights are from there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from flowrl.base.errors import CheckpointError
from flowrl.base.library_noise import hide_progress_bars

# Buffers that files of older libraries hold; a network makes its own.
_BUFFERS = ("position_ids",)


def load_part(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """The network of the class `kind`, of diffusers or transformers, in `folder`, on the CPU as `dtype`.

    A library fills what a file lacks with random numbers and says so in a warning at most; here it is a CheckpointError
    with the folder and the first such tensor. So is a tensor of another shape, or one that the network does not have,
    since then its config.json is that of another network. Weights that are tied need to be there once.
    """
    hide_progress_bars()
    # transformers names no tensor when it refuses a shape; told to go on, it does.
    lenient = {"ignore_mismatched_sizes": True} if issubclass(kind, PreTrainedModel) else {}
    try:
        network, info = kind.from_pretrained(folder, dtype=dtype, output_loading_info=True, **lenient)
    except ValueError as error:  # diffusers' of a shape, with advice for programmers after its first sentence
        raise CheckpointError(f"{folder}: {str(error).partition('. ')[0]}; copy the folder again") from None
    unknown = [key for key in info["unexpected_keys"] if not key.endswith(_BUFFERS)]
    for keys, fault in (
        (info["missing_keys"], "is missing"),
        ([key for key, *_ in info["mismatched_keys"]], "has another shape than config.json says"),
        (unknown, "is not one of the network that config.json describes"),
    ):
        if keys:
            raise CheckpointError(
                f"{folder}: {min(keys)} {fault} ({len(keys)} such); copy the folder again, or export it whole"
            )
    return network
