"""Reads what others published beside safetensors: weights that `torch.save` wrote, and tokenizers."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import torch

from flowrl.base.errors import CheckpointError
from flowrl.base.tokenizer_files import check_tokenizer_files

_NESTED = ("state_dict", "model")  # where a file keeps its weights when they are not all of it
_OLD_FORMAT = b"\x80"  # the first byte of a pickle, which torch.save wrote before it wrote zip archives


def published_folder(path: str, weights: str, reward: str) -> Path:
    """The folder `path`; raises CheckpointError, which says what `reward` needs there, when there is none.

    Whether it holds `weights` is for their reader to say, since large ones may lie there in shards.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"{path}: no such folder; {reward} needs one that holds {weights} and its other files")
    return folder


def check_torch_file(path: Path) -> None:
    """Raise CheckpointError unless `path` looks like a whole file of `torch.save`; reads only its ends."""
    if not path.is_file():
        raise CheckpointError(f"{path}: this file is missing; copy or download it again")
    with path.open("rb") as file:
        is_old = file.read(1) == _OLD_FORMAT
    if not is_old and not zipfile.is_zipfile(path):  # its table of contents is at its end
        raise CheckpointError(f"{path}: cut off, or not a file of torch.save; copy it again")


def read_torch_file(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file of `torch.save`, plain or under "state_dict" or "model"; no code in it is run.

    Raises CheckpointError when the file is missing or damaged, or holds anything but tensors by name.
    """
    check_torch_file(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path}: damaged, or holds more than tensors ({reason}); copy it again") from None
    for key in _NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise CheckpointError(f"{path}: must hold tensors by name, plain or under one of {', '.join(_NESTED)}")
    return dict(content)


def check_tokenizer(folder: Path, vocabulary: tuple[str, ...], base: str) -> None:
    """Raise CheckpointError unless `folder` holds a tokenizer: its config, with tokenizer.json or the `vocabulary`.

    `base` is the model whose tokenizer belongs there.
    """
    settings = "tokenizer_config.json"
    choices = ((settings, "tokenizer.json"), (settings, *vocabulary))
    check_tokenizer_files(folder, choices, advice=f"copy the tokenizer files of {base} here")


def without(tensors: dict[str, torch.Tensor], unused: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """The tensors but those that `unused` names; a name that ends in a dot stands for all that begin with it."""
    prefixes = tuple(name for name in unused if name.endswith("."))
    return {key: value for key, value in tensors.items() if key not in unused and not key.startswith(prefixes)}
