"""CLIPScore (arXiv 2104.08718): the cosine of an image and its prompt by a CLIP that was trained for nothing else."""

from __future__ import annotations

from functools import partial

import torch

from flowrl.types import HollowReward, RewardInput, TrainedOn
from rewards.clip.cosine import CosineReward
from rewards.clip.hollow import hollow_cosine
from rewards.clip.preprocess import crop_pixels
from rewards.clip.towers import WEIGHTS, check_clip_folder, read_clip_folder
from rewards.published_files import published_folder

BASE = "openai/clip-vit-large-patch14"  # or another CLIP; the folder says which
_WEIGHT = 2.5  # the paper's w


class CLIPScoreReward(CosineReward):
    """Scores images with the cosine of image and prompt, in [-1, 1]; with `rescale`, 2.5 * max(cosine, 0).

    `path` is any CLIP as transformers saves it, tokenizer included. The paper rescales and puts "A photo depicts"
    before each text; benchmarks of image generators give the plain cosine of the prompt alone, as here. Raises
    CheckpointError when the folder cannot be loaded.
    """

    name = "clip_score"

    def __init__(
        self, path: str, rescale: bool = False, device: str = "cpu", dtype: str = "float32", batch_size: int = 16
    ) -> None:
        folder = published_folder(path, WEIGHTS, self.name)
        tensors = read_clip_folder(folder)
        super().__init__(
            folder, tensors, folder / WEIGHTS, base=BASE, device=device, dtype=dtype, batch_size=batch_size
        )
        self.rescale = rescale

    @staticmethod
    def preflight(path: str) -> TrainedOn | None:
        """None: it reads no latents; raises CheckpointError when the files in `path` are not whole."""
        check_clip_folder(published_folder(path, WEIGHTS, CLIPScoreReward.name), BASE)
        return None

    @staticmethod
    def hollow(path: str, dtype: str, batch_size: int) -> HollowReward:
        """The network of the folder, or of the published sizes where there is no folder yet."""
        return hollow_cosine(path, BASE, dtype, batch_size)

    def __call__(self, batch: RewardInput) -> torch.Tensor:
        """Scores [B] float32 of pixels [B, 3, H, W] in [0, 1], with gradient to the pixels where they ask for one.

        Rescaled scores below 0 become 0 and have no gradient. Raises ValueError when the batch has no pixels.
        """
        cosines = self.cosines(batch, partial(crop_pixels, library="transformers"))
        return _WEIGHT * cosines.clamp(min=0) if self.rescale else cosines
