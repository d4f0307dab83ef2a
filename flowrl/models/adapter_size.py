"""How many numbers a LoRA adapter has, from the headers of the weights that it goes with: nothing is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from flowrl.base.tensor_files import TensorFiles
from flowrl.base.weight_files import weight_files


def num_adapter_parameters(transformer: Path, *, rank: int, targets: Sequence[str]) -> int:
    """The numbers of the two matrices at each layer of a diffusers transformer folder whose name ends in a target.

    `flowrl.models.lora.attach` makes them. Raises CheckpointError when a file of weights is not there or damaged.
    """
    endings = tuple(f".{target}.weight" for target in targets)
    shapes = TensorFiles(weight_files(transformer, "diffusion_pytorch_model")).shapes
    layers = [shape for key, shape in shapes.items() if f".{key}".endswith(endings)]
    return sum(rank * (out + math.prod(into)) for out, *into in layers)
