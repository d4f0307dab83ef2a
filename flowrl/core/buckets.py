"""Aspect-ratio buckets: the few sizes that images are brought to, so that they can be batched."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from flowrl.base.errors import UserError
from flowrl.core.bucket_rules import bucket_fault


@dataclass(frozen=True, kw_only=True)
class BucketPlan:
    """Sizes of about the area of a square of `image_size`, with sides that are multiples of `step`.

    Example: ``BucketPlan(image_size=512)`` has 512 x 512, 448 x 576 and so on up to an aspect of 2. Raises UserError
    unless `step` is a multiple of 16, `image_size` at least `step`, and `max_aspect` at least 1.
    """

    image_size: int = 512  # pixels
    step: int = 64  # pixels
    max_aspect: float = 2.0

    def __post_init__(self) -> None:
        if fault := bucket_fault(self.image_size, self.step, self.max_aspect):
            raise UserError(fault)

    @property
    def side(self) -> int:
        """Pixels of the side of the square bucket, which is as near to `image_size` as `step` allows."""
        return max(self.step, round(self.image_size / self.step) * self.step)

    def sizes(self) -> list[tuple[int, int]]:
        """All (height, width), the square one among them."""
        area = self.image_size**2
        found = set()
        for short in range(self.step, self.image_size + self.step, self.step):
            long = max(short, round(area / short / self.step) * self.step)
            if long <= self.max_aspect * short:
                found |= {(short, long), (long, short)}
        return sorted(found | {(self.side, self.side)})

    def size_for(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) of the bucket whose aspect is nearest to that of an image."""
        aspect = math.log(height / width)
        return min(self.sizes(), key=lambda size: (abs(math.log(size[0] / size[1]) - aspect), size))


def fit(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """An image [3, H, W] uint8 brought to `size`: [3, h, w] float32 in [0, 1]."""
    return cover(image[None].float() / 255, size)[0]


def cover(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Pixels [B, 3, H, W] in [0, 1] scaled until they cover `size`, and their middle: [B, 3, h, w] float32 in [0, 1].

    The scaling is bicubic with antialiasing.
    """
    height, width = pixels.shape[2:]
    scale = max(size[0] / height, size[1] / width)
    target = (max(size[0], round(height * scale)), max(size[1], round(width * scale)))
    if target != (height, width):
        pixels = F.interpolate(pixels.float(), target, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    top, left = (target[0] - size[0]) // 2, (target[1] - size[1]) // 2
    return pixels[:, :, top : top + size[0], left : left + size[1]]
