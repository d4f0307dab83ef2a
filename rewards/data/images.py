"""Opens the images of comparisons: their size from the header alone, and their pixels as everything else reads them."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from flowrl.core.errors import UserError
from rewards.data.comparison import ImageRef
from rewards.data.parquet_files import ParquetCells

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


class BadImage(UserError):
    """An image that is missing, damaged or not an image; the message names it and what is wrong."""


class ImageReader:
    """Reads images where they lie, in files of their own or in cells of parquet files.

    Example: ``ImageReader().size(ImageRef(path="cat.png"))`` is (height, width). Keeps parquet files open: one reader
    for each process, and the images of a parquet file in the order of its rows.
    """

    def __init__(self) -> None:
        self._cells = ParquetCells()

    def size(self, ref: ImageRef) -> tuple[int, int]:
        """Height and width in pixels as `pixels` will have them, from the header; raises BadImage.

        An image that is cut off after its header shows in `pixels` alone.
        """
        try:
            with self._open(ref) as image:
                width, height = _checked(image).size
                return (width, height) if _orientation(image) in _SWAPPING else (height, width)
        except _DAMAGE as error:
            raise BadImage(f"{ref}: {_reason(error)}") from None

    def pixels(self, ref: ImageRef) -> torch.Tensor:
        """The image [3, H, W] uint8, RGB, upright; raises BadImage.

        EXIF orientation is applied, transparency is laid on white (as Qwen2-VL's own reading does), 16-bit grey is
        rounded to 8 bits, and of an animation the first frame is taken. EXIF that cannot be read is ignored, as viewers
        do.
        """
        try:
            with self._open(ref) as image:
                turn = _TURNS.get(_orientation(_checked(image)))
                rgb = _rgb(image)
        except _DAMAGE as error:
            raise BadImage(f"{ref}: {_reason(error)}") from None
        upright = rgb if turn is None else rgb.transpose(turn)
        return torch.from_numpy(np.array(upright)).permute(2, 0, 1).contiguous()

    def _open(self, ref: ImageRef) -> Image.Image:
        if ref.row < 0:
            return Image.open(Path(ref.path), formats=FORMATS)
        data = self._cells.cell(ref.path, ref.column, ref.row)
        if not isinstance(data, bytes):
            raise ValueError(f"the cell holds {type(data).__name__}, not the bytes of an image")
        return Image.open(io.BytesIO(data), formats=FORMATS)


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
