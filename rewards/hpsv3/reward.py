"""HPSv3 as a reward: decoded images and their prompts in, scores out."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from flowrl.base.dtypes import torch_dtype
from flowrl.base.embedded import POCKET
from flowrl.base.empty_module import fill
from flowrl.reward_protocols import NeededFiles
from flowrl.types import HollowReward, RewardInput, SampleShapes, TrainedOn
from rewards.batch_inputs import pixels_of
from rewards.files import checkpoint_folder
from rewards.hpsv3.hollow import hollow_hpsv3
from rewards.hpsv3.layout import check_folder, open_folder
from rewards.hpsv3.model import tokenize
from rewards.hpsv3.preprocess import patchify


class HPSv3Reward:
    """Scores images with an HPSv3 folder (arXiv 2508.03789); the score is mu, about -2 to 12 for the published one.

    `path` is such a folder or "pocket". `empty` makes it without weights: it fits
    `flowrl.reward_protocols.StreamedReward`. Raises `flowrl.base.errors.CheckpointError` when it cannot be loaded.
    """

    name = "hpsv3"
    input_kind: Literal["latent", "pixel"] = "pixel"
    latent_space: str | None = None

    def __init__(
        self,
        path: str = POCKET,
        device: str = "cpu",
        dtype: str = "float32",
        batch_size: int = 16,
        empty: bool = False,
    ) -> None:
        stored = open_folder(checkpoint_folder(path, self.name))
        self._weights = partial(stored.read_weights, torch_dtype(dtype))
        self.tokenizer, self.spec = stored.tokenizer, stored.spec
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.module: torch.nn.Module = stored.model
        if not empty:
            fill(stored.model, self._weights(share=device == "cpu"), self.device)

    def read_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The weights of `module` by name, each read when it is asked for; raises CheckpointError before the first."""
        return self._weights()

    @staticmethod
    def preflight(path: str) -> TrainedOn | None:
        """None: it reads no latents; raises CheckpointError when the files in `path` are not whole."""
        check_folder(checkpoint_folder(path, HPSv3Reward.name))
        return None

    @staticmethod
    def needs(path: str) -> tuple[NeededFiles, ...]:
        """The folder `path`, but for the one that comes with flowrl."""
        return () if path == POCKET else (NeededFiles(option="path", path=Path(path)),)

    @staticmethod
    def hollow(path: str, dtype: str, batch_size: int, shapes: SampleShapes) -> HollowReward:
        """The network of the folder, or of the published sizes where there is no folder yet."""
        return hollow_hpsv3(path, dtype, batch_size, shapes)

    def __call__(self, batch: RewardInput) -> torch.Tensor:
        """Scores [B] float32 of pixels [B, 3, H, W] in [0, 1], with gradient to the pixels where they ask for one.

        Raises ValueError when the batch has no pixels or a prompt holds a special token of the template.
        """
        pixels = pixels_of(batch, self.name, self.device)
        num_tokens = self.spec.num_tokens(pixels.shape[2], pixels.shape[3])
        chats = tokenize(self.tokenizer, batch.prompts, num_tokens).to(self.device)
        patches, grid = patchify(pixels, self.spec)
        scores: torch.Tensor = self.module(chats, patches, grid)[:, 0]
        return scores
