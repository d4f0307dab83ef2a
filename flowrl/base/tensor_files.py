"""The tensors of safetensors files by name, each read when it is asked for, so that a model is never there twice."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from flowrl.base.errors import CheckpointError
from flowrl.base.weight_files import check_safetensors

_ALIGNMENT = 64  # bytes, of what torch allocates


class TensorFiles:
    """Some safetensors files as one table of tensors.

    Raises CheckpointError, when it is made, unless every file is there and whole; of each the header is read.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._file_of: dict[str, Path] = {}
        self._mapped: dict[Path, Any] = {}
        for file in files:
            check_safetensors(file)
            try:
                with safe_open(file, framework="pt") as opened:
                    for key in opened.keys():
                        self.shapes[key] = tuple(opened.get_slice(key).get_shape())
                        self._file_of[key] = file
            except SafetensorError as error:
                raise CheckpointError(f"{file}: torn or not a safetensors file ({error}); copy it again") from None

    def view(self, key: str) -> torch.Tensor:
        """A tensor as pages of the file; the memory that they take is free again when the tensor is."""
        # Opened anew for each tensor: a file that stays open keeps all pages that were read of it.
        with safe_open(self._file_of[key], framework="pt") as opened:
            tensor: torch.Tensor = opened.get_tensor(key)
            return tensor

    def convert(self, key: str, dtype: torch.dtype) -> torch.Tensor:
        """A tensor as `dtype`: a view where that is its own."""
        return self.view(key).to(dtype)

    def share(self, key: str, dtype: torch.dtype, *, placed: bool = False) -> torch.Tensor:
        """A tensor as `dtype`: where that is its own, the pages of the file, which all processes that map it share.

        With `placed` float32 numbers that lie at odd places in the file are copied to where torch would have them, as
        the ranks of a gang have theirs: products may round otherwise by that. (Half-precision products were not seen to
        depend on it.)
        """
        file = self._file_of[key]
        if file not in self._mapped:
            self._mapped[file] = safe_open(file, framework="pt")
        tensor: torch.Tensor = self._mapped[file].get_tensor(key)
        odd = placed and dtype == torch.float32 and tensor.data_ptr() % _ALIGNMENT != 0
        return self.view(key).to(dtype, copy=True) if odd or tensor.dtype != dtype else tensor


def num_elements(files: Iterable[Path]) -> int:
    """How many numbers the tensors of some files are; raises CheckpointError as `TensorFiles` does."""
    return sum(math.prod(shape) for file in files for shape in TensorFiles([file]).shapes.values())
