"""The sizes of a model: of its folder, or as published where it is not here yet."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from flowrl.base.embedded import folder_of
from flowrl.base.errors import CheckpointError
from flowrl.base.weight_files import read_json
from flowrl.models.sd3 import SD3
from flowrl.models.sd35_published import CLIP_TOKENS, PUBLISHED


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """What shapes and memory follow from.

    Example: of SD3.5-Large ``transformer["num_layers"]`` is 38 and ``clip_tokens`` 77
    """

    transformer: Mapping[str, Any]  # its config.json
    vae: Mapping[str, Any]
    clip_tokens: int
    text_encoder_parameters: int


def model_sizes(path: str) -> ModelSizes:
    """The sizes of the diffusers folder at `path`, or where there is none, those published of the model of its name.

    Raises CheckpointError when neither is known.
    """
    folder = folder_of(path, "sd35")
    if (folder / "model_index.json").is_file():
        return ModelSizes(
            transformer=read_json(folder / "transformer" / "config.json"),
            vae=read_json(folder / "vae" / "config.json"),
            clip_tokens=SD3.text_length(folder, 0),
            text_encoder_parameters=sum(_num_parameters(file) for file in folder.glob("text_encoder*/*.safetensors")),
        )
    names = {repository.rpartition("/")[2]: published for repository, published in PUBLISHED.items()}
    if folder.name not in names:
        raise CheckpointError(
            f"model.path: {path} is no folder with a model_index.json, and sizes are known of {', '.join(names)} alone"
        )
    published = names[folder.name]
    return ModelSizes(
        transformer=published.transformer,
        vae=published.vae,
        clip_tokens=CLIP_TOKENS,
        text_encoder_parameters=published.text_encoder_parameters,
    )


def _num_parameters(file: Path) -> int:
    with safe_open(file, framework="pt") as opened:
        return sum(math.prod(opened.get_slice(key).get_shape()) for key in opened.keys())
