"""PickScore (arXiv 2305.01569): CLIP ViT-H/14 trained on Pick-a-Pic, in transformers' layout."""

from __future__ import annotations

from functools import partial

import torch

from flowrl.types import HollowReward, RewardInput, TrainedOn
from rewards.clip.cosine import HUGE, CosineReward
from rewards.clip.hollow import hollow_cosine
from rewards.clip.preprocess import crop_pixels
from rewards.clip.towers import WEIGHTS, check_clip_folder, read_clip_folder
from rewards.published_files import published_folder


class PickScoreReward(CosineReward):
    """Scores images with exp(logit_scale) * cosine of image and prompt, about 17 to 25 for the published weights.

    `path` is a copy of yuvalkirstain/PickScore_v1 with the tokenizer files of the CLIP it was trained from. Published:
    the layout, the score, and the image processor of transformers' CLIP. Trainers divide the score by 26; here it is
    undivided. Raises CheckpointError when the folder cannot be loaded.
    """

    name = "pick_score"

    def __init__(self, path: str, device: str = "cpu", dtype: str = "float32", batch_size: int = 16) -> None:
        folder = published_folder(path, WEIGHTS, self.name)
        tensors = read_clip_folder(folder)
        super().__init__(
            folder, tensors, folder / WEIGHTS, base=HUGE, device=device, dtype=dtype, batch_size=batch_size
        )
        # Read before its rounding to `dtype`: the exponential would make half a percent of that one.
        self.scale = tensors["logit_scale"].float().exp().item()

    @staticmethod
    def preflight(path: str) -> TrainedOn | None:
        """None: it reads no latents; raises CheckpointError when the files in `path` are not whole."""
        check_clip_folder(published_folder(path, WEIGHTS, PickScoreReward.name), HUGE)
        return None

    @staticmethod
    def hollow(path: str, dtype: str, batch_size: int) -> HollowReward:
        """The network of the folder, or of the published sizes where there is no folder yet."""
        return hollow_cosine(path, HUGE, dtype, batch_size)

    def __call__(self, batch: RewardInput) -> torch.Tensor:
        """Scores [B] float32 of pixels [B, 3, H, W] in [0, 1], with gradient to the pixels where they ask for one.

        Raises ValueError when the batch has no pixels.
        """
        return self.scale * self.cosines(batch, partial(crop_pixels, library="transformers"))
