"""Pixels to what Qwen2-VL's vision tower reads, on tensors: the image stays on its device and keeps its gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from rewards.clip.preprocess import normalise

PUBLISHED_AREA = 256 * 28 * 28  # pixels; HPSv3 sets the least and the greatest area to this
_MAX_ASPECT = 200


@dataclass(frozen=True, kw_only=True)
class PatchSpec:
    """How images are cut: the published sizes unless said otherwise.

    Example: ``PatchSpec()`` makes 256 image tokens of a square image.
    """

    area: int = PUBLISHED_AREA  # pixels after resizing, approximately
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """The size that an image is resized to."""
        return smart_resize(
            height, width, factor=self.patch_size * self.merge_size, min_pixels=self.area, max_pixels=self.area
        )

    def num_tokens(self, height: int, width: int) -> int:
        """The number of image tokens that the language model sees."""
        height, width = self.resized(height, width)
        return (height // (self.patch_size * self.merge_size)) * (width // (self.patch_size * self.merge_size))


def smart_resize(height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Qwen2-VL's size rule: multiples of `factor`, area within the bounds, nearly the same aspect.

    Raises ValueError on an aspect ratio above 200.
    """
    if max(height, width) > _MAX_ASPECT * min(height, width):
        raise ValueError(f"an image must not be over {_MAX_ASPECT} times as long as wide, got {height} x {width}")
    new_height = max(factor, round(height / factor) * factor)
    new_width = max(factor, round(width / factor) * factor)
    if new_height * new_width > max_pixels:
        scale = math.sqrt(height * width / max_pixels)
        new_height = max(factor, math.floor(height / scale / factor) * factor)
        new_width = max(factor, math.floor(width / scale / factor) * factor)
    elif new_height * new_width < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * scale / factor) * factor
        new_width = math.ceil(width * scale / factor) * factor
    return new_height, new_width


def patchify(pixels: torch.Tensor, spec: PatchSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """Resize, normalise and cut pixels [B, 3, H, W] in [0, 1].

    Returns the patches [B * h * w, 3 * T * P * P] float32, ordered by merge block as in Qwen2-VL's image processor,
    and the grid [B, 3] int64 of (1, h, w) patches.
    """
    size = spec.resized(pixels.shape[2], pixels.shape[3])
    pixels = pixels.float()
    if size != tuple(pixels.shape[2:]):
        # The published resize is PIL's bicubic on bytes, which cannot leave the range of a byte.
        pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    normal = normalise(pixels)
    patch, merge = spec.patch_size, spec.merge_size
    rows, columns = size[0] // patch, size[1] // patch
    blocks = normal.reshape(len(normal), 3, rows // merge, merge, patch, columns // merge, merge, patch)
    blocks = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7)  # [B, row blocks, column blocks, merge, merge, 3, P, P]
    # A still image is repeated along time to fill one temporal patch.
    frames = blocks[..., None, :, :].expand(*blocks.shape[:6], spec.temporal_patch_size, patch, patch)
    grid = torch.tensor([1, rows, columns], device=pixels.device).expand(len(pixels), 3)
    return frames.reshape(len(pixels) * rows * columns, -1), grid
