"""The sizes of a model: of its folder, or as published where it is not here yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flowrl.base.embedded import folder_of
from flowrl.base.errors import CheckpointError, UserError
from flowrl.base.tensor_files import num_elements
from flowrl.base.weight_files import read_json
from flowrl.config import ModelSection
from flowrl.models.sd3 import SD3
from flowrl.models.sd35_published import CLIP_TOKENS, PUBLISHED
from flowrl.registry import resolve


class UnplannedModelError(UserError):
    """A model of which nothing can be computed beforehand; a run of it can start all the same."""


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """What shapes and memory follow from.

    Example: of SD3.5-Large ``transformer["num_layers"]`` is 38 and ``clip_tokens`` 77
    """

    transformer: Mapping[str, Any]  # its config.json
    vae: Mapping[str, Any]
    clip_tokens: int
    text_encoder_parameters: int


def model_sizes(model: ModelSection) -> ModelSizes:
    """The sizes of the diffusers folder of a model, or where there is none, those published of the model of its name.

    Raises CheckpointError when neither is known, and UnplannedModelError for a model of another family than Stable
    Diffusion 3: what is measured is the code of that one.
    """
    if resolve("policy", model.family)[0] is not SD3:
        raise UnplannedModelError(
            f"model.family: what a run needs is computed for sd3 alone, got {model.family}",
            advice="start the run without a plan: flowrl train needs none",
        )
    folder = folder_of(model.path, "sd35")
    if (folder / "model_index.json").is_file():
        return ModelSizes(
            transformer=read_json(folder / "transformer" / "config.json"),
            vae=read_json(folder / "vae" / "config.json"),
            clip_tokens=SD3.text_length(folder, 0),
            text_encoder_parameters=num_elements(folder.glob("text_encoder*/*.safetensors")),
        )
    names = {repository.rpartition("/")[2]: published for repository, published in PUBLISHED.items()}
    if folder.name not in names:
        raise CheckpointError(
            f"model.path: {model.path} is no folder with a model_index.json, and sizes are known of "
            f"{', '.join(names)} alone"
        )
    published = names[folder.name]
    return ModelSizes(
        transformer=published.transformer,
        vae=published.vae,
        clip_tokens=CLIP_TOKENS,
        text_encoder_parameters=published.text_encoder_parameters,
    )
