"""Tells the weights of one network from those of another of the same layout, without reading them all."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import safe_open

from flowrl.base.weight_files import check_model_folder, weight_files

# Not learned: a table that depends on the sizes alone, and is the same in all models of a layout.
_TABLE = "pos_embed.pos_embed"
_PER_TENSOR = 4096
_SMALLEST = 2.0**-14  # below it float16 is coarser than bfloat16


def fingerprint(folder: Path, stem: str) -> str:
    """A digest of the weights `stem.safetensors`, or of the shards that its index lists, in a folder.

    It is the same however the weights are sharded, and for copies in another precision: all of a bfloat16 or float16
    model, the bfloat16 one of a float32 model. A float16 copy of a float32 model counts as another, as it rounds
    otherwise. Raises CheckpointError when a file is missing or torn.
    """
    check_model_folder(folder, stem)
    parts: dict[str, bytes] = {}
    for path in weight_files(folder, stem):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():
                if key == _TABLE:
                    continue
                part = file.get_slice(key)
                shape = part.get_shape()
                # One row of every tensor: some megabytes of SD3.5-Large, from every place that a LoRA or a longer
                # training can have changed. Norms and biases alone are those that a merged LoRA leaves as they are.
                row = part[:] if len(shape) < 2 else part[:1]
                parts[key] = f"{key} {shape} ".encode() + _rounded(row)
    return hashlib.sha256(b"".join(parts[key] for key in sorted(parts))).hexdigest()


def _rounded(values: torch.Tensor) -> bytes:
    """The first numbers of a tensor as bfloat16, the tiny ones as zero: what all precisions agree on."""
    rounded = values.flatten()[:_PER_TENSOR].to(torch.bfloat16)
    agreed = torch.where(rounded.abs() < _SMALLEST, torch.zeros_like(rounded), rounded)
    return agreed.contiguous().view(torch.int16).numpy().tobytes()
