"""What the rewards that compare an image with its text have in common."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from flowrl.base.dtypes import torch_dtype
from flowrl.reward_protocols import NeededFiles
from flowrl.types import RewardInput
from rewards.batch_inputs import pixels_of
from rewards.clip.towers import CosineModel, check_config, load_clip, load_tokenizer, tokenize

HUGE = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # the CLIP that HPSv2 and PickScore were trained from


class CosineReward:
    """A CLIP with its tokenizer; fits `flowrl.reward_protocols.ShardableReward` but for its scores, which a subclass
    makes.

    `tensors` are the weights under the names of transformers, `source` the file they came from, and `base` the model
    whose config and tokenizer belong in `folder`. Raises CheckpointError when the parts do not fit.
    """

    name: str
    input_kind: Literal["latent", "pixel"] = "pixel"
    latent_space: str | None = None

    def __init__(
        self,
        folder: Path,
        tensors: dict[str, torch.Tensor],
        source: Path,
        *,
        base: str,
        device: str,
        dtype: str,
        batch_size: int,
    ) -> None:
        config = check_config(folder, base)
        self.tokenizer = load_tokenizer(folder, config, base)
        self.image_size = int(config.vision_config.image_size)
        self.text_length = int(config.text_config.max_position_embeddings)
        self.batch_size = batch_size
        self.device = torch.device(device)
        clip = load_clip(config, tensors, source, torch_dtype(dtype))
        self.module: torch.nn.Module = CosineModel(clip).to(self.device)

    @staticmethod
    def needs(path: str) -> tuple[NeededFiles, ...]:
        """The folder `path`."""
        return (NeededFiles(option="path", path=Path(path)),)

    def cosines(self, batch: RewardInput, fit: Callable[[torch.Tensor, int], torch.Tensor]) -> torch.Tensor:
        """The cosine [B] float32 of each image, brought to the size of the tower by `fit`, and its prompt.

        With gradient to the pixels where they ask for one. Raises ValueError when the batch has no pixels.
        """
        images = fit(pixels_of(batch, self.name, self.device), self.image_size)
        texts = tokenize(self.tokenizer, batch.prompts, self.text_length, self.device)
        cosines: torch.Tensor = self.module(images, texts)
        return cosines
