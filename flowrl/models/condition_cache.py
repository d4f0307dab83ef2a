"""Text conditions on disk, so that a text is encoded once for all runs of a model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from flowrl.base.atomic_file import write_atomically
from flowrl.base.errors import CheckpointError
from flowrl.types import TextCondition


class ConditionCache:
    """A folder with a safetensors file for each text, named for all that its condition depends on: the text, the text
    encoders, the number of their tokens and the dtype that they compute in. Any number of processes may share it.
    """

    def __init__(self, folder: Path, *, encoders: str, text_length: int, dtype: torch.dtype) -> None:
        """`encoders` is a digest of the text encoders, tokenizers included; `text_length` in tokens."""
        self._folder = folder
        self._encoders = encoders
        self._text_length = text_length
        self._dtype = str(dtype).removeprefix("torch.")

    def path(self, text: str) -> Path:
        """The file of a text, which need not be there."""
        parts = json.dumps([self._encoders, self._text_length, self._dtype, text])
        name = hashlib.blake2b(parts.encode(), digest_size=20).hexdigest()
        return self._folder / name[:2] / f"{name}.safetensors"

    def __contains__(self, text: str) -> bool:
        return self.path(text).is_file()

    def load(self, text: str) -> TextCondition:
        """The condition of a text that is there; raises CheckpointError when its file is damaged."""
        path = self.path(text)
        try:
            with safe_open(path, framework="pt") as file:
                return TextCondition(embeds=file.get_tensor("embeds"), pooled=file.get_tensor("pooled"))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: this text condition is damaged ({error}); remove the file") from None

    def save(self, text: str, condition: TextCondition) -> None:
        """Keep the condition of a text."""
        path = self.path(text)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"embeds": condition.embeds.contiguous(), "pooled": condition.pooled.contiguous()}
        write_atomically(path, save(tensors, {"text": text}))
