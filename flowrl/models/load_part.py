"""Loads one network of a diffusers folder, and takes it only when all of its weights are from there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from flowrl.base.empty_module import fill
from flowrl.base.library_noise import hide_progress_bars
from flowrl.base.module_tensors import check_tensors, refuse_tensors
from flowrl.base.tensor_files import TensorFiles
from flowrl.base.weight_files import weight_files

# Buffers that files of older libraries hold; a network makes its own.
_BUFFERS = ("position_ids",)
_DIFFUSERS_STEM = "diffusion_pytorch_model"


def load_part(kind: Any, folder: Path, dtype: torch.dtype, device: str = "cpu") -> Any:
    """The network of the class `kind`, of diffusers or transformers, in `folder`, on the device as `dtype`.

    On the CPU weights that the file has as `dtype` are its pages, the same memory in all processes; to another device
    they go one by one. A library fills what a file lacks with random numbers and says so in a warning at most; here it
    is a CheckpointError with the folder and the first such tensor. So is a tensor of another shape, or one that the
    network does not have, since then its config.json is that of another network. Weights that are tied need to be there
    once.
    """
    if issubclass(kind, PreTrainedModel):
        return _of_transformers(kind, folder, dtype, device)
    network = empty_part(kind, folder)
    fill(network, read_part(network, folder, dtype, share=device == "cpu"), torch.device(device))
    return network


def check_part(kind: Any, folder: Path) -> None:
    """Raise CheckpointError unless the tensors in `folder`, by their names and shapes, are those of the class of
    diffusers `kind` as config.json describes it.
    """
    check_tensors(empty_part(kind, folder), TensorFiles(weight_files(folder, _DIFFUSERS_STEM)).shapes, folder)


def empty_part(kind: Any, folder: Path) -> Any:
    """The network of a class of diffusers on the meta device, in evaluation mode; of the folder config.json is read."""
    # Not by from_pretrained, which computes tables of positions that the file holds, gigabytes of them for a moment.
    with torch.device("meta"):
        return kind.from_config(kind.load_config(folder)).eval()


def read_part(
    network: torch.nn.Module, folder: Path, dtype: torch.dtype, *, share: bool = False
) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of what `empty_part` gave, on the CPU as `dtype`, by name, each read when it is asked for.

    With `share` they are for keeping, and those that can are pages of the files that other processes have as well.
    Without it they are for copying: to hold one is to hold its pages. Raises CheckpointError as `load_part` does,
    before the first.
    """
    stored = TensorFiles(weight_files(folder, _DIFFUSERS_STEM))
    check_tensors(network, stored.shapes, folder)
    for key in network.state_dict():
        yield key, stored.share(key, dtype) if share else stored.convert(key, dtype)


def _of_transformers(kind: Any, folder: Path, dtype: torch.dtype, device: str) -> Any:
    """The network of a class of transformers, which knows which weights are tied."""
    hide_progress_bars()
    network, info = kind.from_pretrained(
        folder,
        dtype=dtype,
        device_map={"": device},
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # when it refuses a shape, it names no tensor
    )
    refuse_tensors(
        folder,
        missing=set(info["missing_keys"]),
        unexpected={key for key in info["unexpected_keys"] if not key.endswith(_BUFFERS)},
        misshapen={key: (wanted, found) for key, found, wanted in info["mismatched_keys"]},
    )
    return network
