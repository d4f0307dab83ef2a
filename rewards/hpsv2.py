"""HPSv2 and HPSv2.1 (arXiv 2306.09341): CLIP ViT-H/14 trained on human choices, in open_clip's layout."""

from __future__ import annotations

import torch

from flowrl.base.config_tree import ConfigError
from flowrl.types import HollowReward, RewardInput, TrainedOn
from rewards.clip.cosine import HUGE, CosineReward
from rewards.clip.hollow import hollow_cosine
from rewards.clip.open_clip_keys import from_open_clip
from rewards.clip.preprocess import pad_pixels
from rewards.clip.towers import check_text_folder
from rewards.published_files import check_torch_file, published_folder, read_torch_file

WEIGHTS = {"2.0": "HPS_v2_compressed.pt", "2.1": "HPS_v2.1_compressed.pt"}  # of xswu/HPSv2
NAMES = {"2.0": "hpsv2", "2.1": "hpsv2_1"}  # as they are registered


class HPSv2Reward(CosineReward):
    """Scores images with the cosine of image and prompt, about 0.20 to 0.35 for the published weights.

    `path` is a folder with the published .pt file of the `version`, "2.0" or "2.1", beside config.json and tokenizer
    files of the CLIP it was trained from; `name` says the version. Published: the layout, the plain cosine without
    logit scale, and images resized whole onto a black square, as the package's own `img_score.py` and `evaluation.py`
    do. Its repair of broken Unicode and HTML entities in prompts is left out. Raises CheckpointError when the folder
    cannot be loaded.
    """

    def __init__(
        self, path: str, version: str, device: str = "cpu", dtype: str = "float32", batch_size: int = 16
    ) -> None:
        weights = _weights(version)
        self.name = NAMES[version]
        source = published_folder(path, weights, self.name) / weights
        tensors = from_open_clip(read_torch_file(source))
        super().__init__(source.parent, tensors, source, base=HUGE, device=device, dtype=dtype, batch_size=batch_size)

    @staticmethod
    def preflight(path: str, version: str) -> TrainedOn | None:
        """None: it reads no latents; raises CheckpointError when the files in `path` are not whole."""
        weights = _weights(version)
        folder = published_folder(path, weights, NAMES[version])
        check_torch_file(folder / weights)
        check_text_folder(folder, HUGE)
        return None

    @staticmethod
    def hollow(path: str, dtype: str, batch_size: int) -> HollowReward:
        """The network of the folder, or of the published sizes where there is no folder yet."""
        return hollow_cosine(path, HUGE, dtype, batch_size)

    def __call__(self, batch: RewardInput) -> torch.Tensor:
        """Scores [B] float32 of pixels [B, 3, H, W] in [0, 1], with gradient to the pixels where they ask for one.

        Raises ValueError when the batch has no pixels.
        """
        return self.cosines(batch, pad_pixels)


def _weights(version: str) -> str:
    if version not in WEIGHTS:
        raise ConfigError(f"hpsv2: version must be one of {', '.join(map(repr, WEIGHTS))}, a string, got {version!r}")
    return WEIGHTS[version]
