"""Opens the images of comparisons: their size from the header alone, and their pixels as everything else reads them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import IO, TypeVar

import torch

from flowrl.base.errors import UserError
from flowrl.base.images import UnreadableImage, image_pixels, image_size
from rewards.data.comparison import ImageRef
from rewards.data.parquet_files import DamagedCell, ParquetCells

Found = TypeVar("Found")


class BadImage(UserError):
    """An image that is missing, damaged or not an image; the message names it and what is wrong."""


def image_mark(pixels: torch.Tensor) -> int:
    """A signed 64-bit digest of an image [3, H, W] uint8: equal for images whose pixels are equal."""
    digest = hashlib.blake2b(repr(tuple(pixels.shape)).encode(), digest_size=8)
    digest.update(pixels.numpy().tobytes())
    return int.from_bytes(digest.digest(), "big", signed=True)


class ImageReader:
    """Reads images where they lie, in files of their own or in cells of parquet files.

    Example: ``ImageReader().size(ImageRef(path="cat.png"))`` is (height, width). Keeps parquet files open: one reader
    for each process, and the images of a parquet file in the order of its rows. A parquet file that is missing, is none
    or lacks the column is a UserError, since none of its images can be read.
    """

    def __init__(self) -> None:
        self._cells = ParquetCells()

    def size(self, ref: ImageRef) -> tuple[int, int]:
        """Height and width in pixels as `pixels` will have them, from the header; raises BadImage.

        An image that is cut off after its header shows in `pixels` alone.
        """
        return self._read(ref, image_size)

    def pixels(self, ref: ImageRef) -> torch.Tensor:
        """The image [3, H, W] uint8 as `flowrl.base.images.image_pixels` reads it; raises BadImage."""
        return self._read(ref, image_pixels)

    def _read(self, ref: ImageRef, read: Callable[[Path | IO[bytes]], Found]) -> Found:
        try:
            return read(self._source(ref))
        except (UnreadableImage, DamagedCell) as error:
            raise BadImage(f"{ref}: {error}") from None

    def _source(self, ref: ImageRef) -> Path | IO[bytes]:
        if ref.row < 0:
            return Path(ref.path)
        data = self._cells.cell(ref.path, ref.column, ref.row)
        if not isinstance(data, bytes):
            raise UnreadableImage(f"the cell holds {type(data).__name__}, not the bytes of an image")
        return io.BytesIO(data)
