"""Pixels as CLIP's image towers read them, on tensors: the image stays on its device and keeps its gradient.

The published models see images of bytes that PIL resized (but for HPSv2, which resizes floats). Here nothing is rounded
to bytes, since that would stop the gradient; the difference is at most about two bytes in a pixel.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


def crop_pixels(pixels: torch.Tensor, size: int, library: Literal["torchvision", "transformers"]) -> torch.Tensor:
    """The middle [B, 3, size, size], normalised, of pixels [B, 3, H, W] in [0, 1] whose shorter edge becomes `size`.

    Where the middle lies between two pixels, torchvision rounds to the even one and transformers down; each published
    model is scored with the library that it came with.
    """
    height, width = pixels.shape[2:]
    short = min(height, width)
    height, width = int(size * height / short), int(size * width / short)
    resized = _resize(pixels, height, width).clamp(0, 1)  # bytes cannot leave their range
    if library == "torchvision":
        top, left = round((height - size) / 2), round((width - size) / 2)
    else:
        top, left = (height - size) // 2, (width - size) // 2
    return normalise(resized[:, :, top : top + size, left : left + size])


def pad_pixels(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """All of pixels [B, 3, H, W] in [0, 1], longer edge `size`, on a black square [B, 3, size, size], normalised.

    As HPSv2's own package does it (`ResizeMaxSize` on a float tensor, which leaves what bicubic overshoots).
    """
    long = max(pixels.shape[2:])
    height, width = (max(1, round(edge * (size / long))) for edge in pixels.shape[2:])
    above, left = (size - height) // 2, (size - width) // 2
    margins = (left, size - width - left, above, size - height - above)
    return normalise(F.pad(_resize(pixels, height, width), margins))


def _resize(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    if (height, width) == tuple(pixels.shape[2:]):
        return pixels
    return F.interpolate(pixels, (height, width), mode="bicubic", antialias=True, align_corners=False)


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels [B, 3, H, W] in [0, 1] less CLIP's mean colour, over its deviation."""
    mean, std = (pixels.new_tensor(values)[:, None, None] for values in (_MEAN, _STD))
    return (pixels - mean) / std
