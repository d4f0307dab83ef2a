"""LAION's aesthetic predictor (christophschuhmann/improved-aesthetic-predictor): how much people like an image."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPVisionModelWithProjection

from flowrl.base.dtypes import torch_dtype
from flowrl.base.weight_files import check_model_folder
from flowrl.reward_protocols import NeededFiles
from flowrl.types import HollowCall, HollowReward, RewardInput, TrainedOn
from rewards.batch_inputs import pixels_of
from rewards.clip.hollow import hollow_tower
from rewards.clip.preprocess import crop_pixels
from rewards.clip.towers import WEIGHTS, check_config, load_image_tower, read_clip_folder
from rewards.files import load_strict
from rewards.linear_head import LinearHead
from rewards.published_files import check_torch_file, published_folder, read_torch_file, without

HEAD = "sac+logos+ava1-l14-linearMSE.pth"
BASE = "openai/clip-vit-large-patch14"
_TEXT_TOWER = ("text_model.", "text_projection.weight", "logit_scale")  # of CLIP; the prompt does not count


class AestheticModel(nn.Module):
    """Scores [B] float32 of images [B, 3, S, S], preprocessed: the head on the unit vector that CLIP makes of each."""

    def __init__(self, tower: CLIPVisionModelWithProjection, head: LinearHead) -> None:
        super().__init__()
        self.tower = tower
        self.head = head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.tower(pixel_values=images.to(self.tower.dtype)).image_embeds
        return self.head(F.normalize(features.float(), dim=-1))


class AestheticReward:
    """Scores images, whatever their prompts; about 1 to 10, since the head was trained on such ratings.

    `path` is a copy of openai/clip-vit-large-patch14 with the published .pth of the head beside it. Published (read in
    that project's `simple_inference.py`): the head, the L2-normalised embedding, and images cropped as OpenAI's clip
    does through torchvision. From memory: that this one of the project's files is the one in common use. Raises
    CheckpointError when the folder cannot be loaded.
    """

    name = "aesthetic"
    input_kind: Literal["latent", "pixel"] = "pixel"
    latent_space: str | None = None

    def __init__(self, path: str, device: str = "cpu", dtype: str = "float32", batch_size: int = 16) -> None:
        folder = published_folder(path, HEAD, self.name)
        config = check_config(folder, BASE)
        weights = without(read_clip_folder(folder), _TEXT_TOWER)
        tower = load_image_tower(config, weights, folder / WEIGHTS, torch_dtype(dtype))
        with torch.device("meta"):
            head = LinearHead(config.projection_dim)
        load_strict(head, read_torch_file(folder / HEAD), folder / HEAD, torch.float32)
        self.image_size = int(config.vision_config.image_size)
        self.batch_size = batch_size
        self.device = torch.device(device)
        model = AestheticModel(tower, head).eval().requires_grad_(False)
        self.module: torch.nn.Module = model.to(self.device)

    @staticmethod
    def preflight(path: str) -> TrainedOn | None:
        """None: it reads no latents; raises CheckpointError when the files in `path` are not whole."""
        folder = published_folder(path, HEAD, AestheticReward.name)
        check_torch_file(folder / HEAD)
        check_config(folder, BASE)
        check_model_folder(folder, WEIGHTS.partition(".")[0])
        return None

    @staticmethod
    def needs(path: str) -> tuple[NeededFiles, ...]:
        """The folder `path`."""
        return (NeededFiles(option="path", path=Path(path)),)

    @staticmethod
    def hollow(path: str, dtype: str, batch_size: int) -> HollowReward:
        """The network of the folder, or of the published sizes where there is no folder yet."""
        tower, images = hollow_tower(path, BASE, dtype, batch_size)
        with torch.device("meta"):
            model = AestheticModel(tower, LinearHead(tower.config.projection_dim))
        return HollowReward(samples=batch_size, calls=(HollowCall(module=model, run=model, inputs=(images,)),))

    def __call__(self, batch: RewardInput) -> torch.Tensor:
        """Scores [B] float32 of pixels [B, 3, H, W] in [0, 1], with gradient to the pixels where they ask for one.

        Raises ValueError when the batch has no pixels.
        """
        pixels = pixels_of(batch, self.name, self.device)
        scores: torch.Tensor = self.module(crop_pixels(pixels, self.image_size, "torchvision"))
        return scores
