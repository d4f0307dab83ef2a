"""The network of a DiT-Reward folder without weights, and the weights that it scores with, read one by one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from diffusers import SD3Transformer2DModel

from flowrl.base.errors import CheckpointError
from flowrl.base.module_tensors import check_tensors
from flowrl.base.tensor_files import TensorFiles
from flowrl.base.weight_files import weight_files
from rewards.dit_reward.layout import HEAD, LORA, STEM, RewardFolder, check_weights
from rewards.dit_reward.model import DiTRewardModel
from rewards.files import sd3_settings
from rewards.lora_files import read_lora


def empty_model(folder: RewardFolder) -> DiTRewardModel:
    """The network on the meta device, in evaluation mode, without what no score depends on.

    Of the folder the settings are read. Raises CheckpointError when they do not fit each other.
    """
    with torch.device("meta"):
        try:
            transformer = SD3Transformer2DModel.from_config(sd3_settings(folder.backbone))
            model = DiTRewardModel(transformer, folder.config)
        except ValueError as error:
            raise CheckpointError(f"{folder.path}: {error}") from None
    model.leave_out_unused()
    return model.eval().requires_grad_(False)


def read_weights(
    folder: RewardFolder, model: DiTRewardModel, dtype: torch.dtype, *, share: bool = False
) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of an empty model of the folder as `dtype` on the CPU, by name, a LoRA merged; each read when asked.

    With `share` they are for keeping, and those that can are pages of the files that other processes have as well.
    Without it they are for copying: to hold one is to hold its pages. Raises CheckpointError, naming the file that is
    at fault, before the first.
    """
    check_weights(folder)
    backbone = TensorFiles(weight_files(folder.backbone, STEM))
    head = TensorFiles([folder.path / HEAD])
    used = model.transformer.state_dict().keys()
    unused = model.unused
    check_tensors(
        model.transformer,
        {key: shape for key, shape in backbone.shapes.items() if key in used or not key.startswith(unused)},
        folder.backbone,
    )
    check_tensors(model.head, head.shapes, folder.path / HEAD)
    lora = read_lora(model.transformer, folder.path / LORA) if folder.has_lora else None
    for key in used:
        merged = lora is not None and key in lora.factors
        tensor = backbone.share(key, dtype, placed=True) if share and not merged else backbone.convert(key, dtype)
        yield f"transformer.{key}", tensor if lora is None else lora.merged(key, tensor)
    for key in head.shapes:
        yield f"head.{key}", head.share(key, dtype, placed=True) if share else head.convert(key, dtype)
