"""How many numbers a LoRA adapter has, from the headers of the weights that it goes with: nothing is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open

from flowrl.base.weight_files import weight_files


def num_adapter_parameters(transformer: Path, *, rank: int, targets: Sequence[str]) -> int:
    """The numbers of the two matrices at each layer of a diffusers transformer folder whose name ends in a target.

    `flowrl.models.lora.attach` makes them. Raises CheckpointError when the folder's index of weights is damaged.
    """
    endings = tuple(f".{target}.weight" for target in targets)
    total = 0
    for file in weight_files(transformer, "diffusion_pytorch_model"):
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():
                if f".{key}".endswith(endings):
                    out, *into = opened.get_slice(key).get_shape()
                    total += rank * (out + math.prod(into))
    return total
