"""Reads reward checkpoints from disk with errors that name the file and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from flowrl.base.embedded import POCKET, folder_of
from flowrl.base.errors import CheckpointError
from flowrl.base.module_tensors import check_tensors
from flowrl.base.weight_files import read_json, weight_files


def checkpoint_folder(path: str, name: str) -> Path:
    """The folder of a checkpoint: `path` itself, or for "pocket" the embedded folder called `name`."""
    folder = folder_of(path, name)
    if not folder.is_dir():
        raise CheckpointError(f"{path}: no such folder; give a {name} checkpoint folder or {POCKET!r}")
    return folder


def sd3_settings(folder: Path) -> dict[str, Any]:
    """The config.json of a transformer's folder; raises CheckpointError unless it is that of an SD3 transformer."""
    settings = read_json(folder / "config.json")
    if settings.get("_class_name") != "SD3Transformer2DModel":
        raise CheckpointError(
            f"{folder / 'config.json'}: expected _class_name SD3Transformer2DModel, got {settings.get('_class_name')!r}"
        )
    return settings


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of one safetensors file; raises CheckpointError when it is missing or torn."""
    if not path.is_file():
        raise CheckpointError(f"{path}: this file is missing")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: torn or not a safetensors file ({error}); copy it again") from None


def read_shards(folder: Path, stem: str) -> dict[str, torch.Tensor]:
    """The tensors of `stem.safetensors`, or of the shards that `stem.safetensors.index.json` lists."""
    tensors: dict[str, torch.Tensor] = {}
    for file in weight_files(folder, stem):
        tensors |= read_tensors(file)
    return tensors


def load_strict(module: torch.nn.Module, tensors: dict[str, torch.Tensor], source: Path, dtype: torch.dtype) -> None:
    """Put `tensors` in `module` as `dtype`; every key and shape must agree, else CheckpointError."""
    check_tensors(module, {key: tuple(value.shape) for key, value in tensors.items()}, source)
    # Assigning lets the module be built on the meta device. Copying moves the weights from where they happen to lie in
    # the file to aligned memory, as they have it when sharded: products round differently by that.
    weights = {key: value.to(dtype, copy=True) for key, value in tensors.items()}
    module.load_state_dict(weights, strict=True, assign=True)
