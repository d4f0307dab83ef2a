"""Reads image files in one way, so that an image has the same pixels wherever it is scored, prepared or trained on."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
MAX_PIXELS = 2**26  # 8192 x 8192; a small file that claims more is an attack or a mistake
_ORIENTATION = 0x0112  # EXIF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPPING = (5, 6, 7, 8)  # turn height into width
# What Pillow raises on files that are damaged.
_DAMAGE = (
    Image.DecompressionBombError,
    EOFError,
    IndexError,
    KeyError,
    NotImplementedError,
    OSError,
    OverflowError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


class UnreadableImage(ValueError):
    """An image that is missing, damaged or not an image; the message says what is wrong, the caller of which file."""


def image_size(source: Path | IO[bytes]) -> tuple[int, int]:
    """Height and width in pixels as `image_pixels` will have them, from the header; raises UnreadableImage.

    An image that is cut off after its header shows in `image_pixels` alone.
    """
    try:
        with Image.open(source, formats=FORMATS) as image:
            width, height = _checked(image).size
            return (width, height) if _orientation(image) in _SWAPPING else (height, width)
    except _DAMAGE as error:
        raise UnreadableImage(_reason(error)) from None


def image_pixels(source: Path | IO[bytes]) -> torch.Tensor:
    """The image [3, H, W] uint8, RGB, upright; raises UnreadableImage.

    EXIF orientation is applied, transparency is laid on white (as Qwen2-VL's own reading does), 16-bit grey is rounded
    to 8 bits, and of an animation the first frame is taken. EXIF that cannot be read is ignored, as viewers do.
    """
    try:
        with Image.open(source, formats=FORMATS) as image:
            turn = _TURNS.get(_orientation(_checked(image)))
            rgb = _rgb(image)
    except _DAMAGE as error:
        raise UnreadableImage(_reason(error)) from None
    upright = rgb if turn is None else rgb.transpose(turn)
    return torch.from_numpy(np.array(upright)).permute(2, 0, 1).contiguous()


def _checked(image: Image.Image) -> Image.Image:
    width, height = image.size
    if width < 1 or height < 1:
        raise ValueError(f"it is {height} x {width} pixels")
    if width * height > MAX_PIXELS:
        raise ValueError(f"it is {height} x {width} pixels, more than {MAX_PIXELS}")
    return image


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 (upright) to 8, of what stands before the pixels: Image.getexif may decode a PNG."""
    data = image.info.get("exif")
    if not isinstance(data, bytes):
        return 1
    exif = Image.Exif()
    try:
        exif.load(data)
        orientation = exif.get(_ORIENTATION, 1)
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, struct.error):
        return 1
    return orientation if isinstance(orientation, int) else 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion clips them at 255
        grey = np.asarray(image).astype(np.int64)
        return Image.fromarray(((grey * 255 + 32767) // 65535).clip(0, 255).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "is a folder, not an image"
    if isinstance(error, UnidentifiedImageError):
        return f"not an image of a known kind ({', '.join(FORMATS)})"
    text = str(error) or type(error).__name__
    return f"damaged or not usable: {text}"
