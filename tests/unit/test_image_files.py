"""Images of every kind that preference data holds: their size from the header, and their pixels."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from flowrl.base.errors import UserError
from rewards.data.comparison import ImageRef
from rewards.data.images import BadImage, ImageReader
from tests.preference_files import encoded, pick_a_pic_row, picture, write_parquet

HEIGHT, WIDTH = 12, 20


def saved(path: Path, image: Image.Image) -> ImageRef:
    image.save(path)
    return ImageRef(path=str(path))


def gradient() -> np.ndarray:
    """Pixels [H, W, 3] that differ in every row and column."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([rows * 20, columns * 12, rows + columns], axis=2).astype(np.uint8)


def png_of(width: int, height: int, *, exif_at_end: bytes = b"") -> bytes:
    """A PNG whose header claims a size, with the pixels of one black row at most."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" * ((width + 1) * min(height, 1)))
    late = chunk(b"eXIf", exif_at_end) if exif_at_end else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + late + chunk(b"IEND", b"")


@pytest.mark.parametrize("ending", ["png", "bmp", "webp"])
def test_pixels_are_those_of_the_file(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"image.{ending}"
    if ending == "webp":
        Image.fromarray(gradient()).save(path, lossless=True)
    else:
        Image.fromarray(gradient()).save(path)
    pixels = ImageReader().pixels(ImageRef(path=str(path)))
    assert pixels.dtype == torch.uint8
    assert pixels.is_contiguous()
    assert torch.equal(pixels, torch.from_numpy(gradient()).permute(2, 0, 1))
    assert ImageReader().size(ImageRef(path=str(path))) == (HEIGHT, WIDTH)


def test_a_jpeg_is_close_to_what_was_saved(tmp_path: Path) -> None:
    ref = saved(tmp_path / "image.jpg", picture(height=HEIGHT, width=WIDTH, brightness=100))
    pixels = ImageReader().pixels(ref)
    assert pixels.shape == (3, HEIGHT, WIDTH)
    assert abs(pixels.float().mean().item() - 100) < 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_exif_orientation_turns_pixels_and_size(tmp_path: Path, orientation: int, ending: str) -> None:
    image = picture(height=16, width=32)
    image.paste((255, 0, 0), (0, 0, 8, 8))  # a red corner shows which way it was turned
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"image.{ending}"
    image.save(path, exif=exif)
    pixels = ImageReader().pixels(ImageRef(path=str(path)))
    size = (16, 32) if orientation < 5 else (32, 16)
    assert tuple(pixels.shape[1:]) == ImageReader().size(ImageRef(path=str(path))) == size
    # Where the EXIF standard puts the stored image's first row and column.
    top = orientation in (1, 2, 5, 6)
    left = orientation in (1, 4, 5, 8)
    corner = pixels[:, slice(0, 6) if top else slice(-6, None), slice(0, 6) if left else slice(-6, None)].float()
    assert corner[0].mean() > 240
    assert corner[1].mean() < 20


def test_orientation_that_stands_after_the_pixels_counts_neither_in_size_nor_in_pixels(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "late.png"
    path.write_bytes(png_of(8, 1, exif_at_end=exif.tobytes()[6:]))
    reader, ref = ImageReader(), ImageRef(path=str(path))
    assert reader.size(ref) == tuple(reader.pixels(ref).shape[1:]) == (1, 8)


def test_exif_that_cannot_be_read_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    picture(height=HEIGHT, width=WIDTH).save(path, exif=b"Exif\0\0XX\0\x2a garbage")
    assert ImageReader().size(ImageRef(path=str(path))) == (HEIGHT, WIDTH)
    assert ImageReader().pixels(ImageRef(path=str(path))).shape == (3, HEIGHT, WIDTH)


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = (0, 128, 255)
    pixels = ImageReader().pixels(saved(tmp_path / "alpha.png", Image.fromarray(rgba)))
    assert pixels[:, 0].tolist() == [[255, 127, 0]] * 3


def test_a_palette_with_a_transparent_entry_lies_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    path = tmp_path / "palette.png"
    image.save(path, transparency=0)
    assert ImageReader().pixels(ImageRef(path=str(path)))[:, 0].tolist() == [[255, 0], [255, 0], [255, 255]]
    image.save(path)
    assert ImageReader().pixels(ImageRef(path=str(path)))[:, 0].tolist() == [[255, 0], [0, 0], [0, 255]]


def test_grey_of_16_bits_is_rounded_to_8(tmp_path: Path) -> None:
    grey = np.array([[0, 257, 32768, 65535]], np.uint16)
    pixels = ImageReader().pixels(saved(tmp_path / "grey.png", Image.fromarray(grey)))
    assert pixels[:, 0].tolist() == [[0, 1, 128, 255]] * 3


@pytest.mark.parametrize("mode", ["1", "L", "LA", "CMYK"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGB", (4, 4), (255, 255, 255)).convert(mode)
    pixels = ImageReader().pixels(saved(tmp_path / ("image.jpg" if mode == "CMYK" else "image.png"), image))
    assert pixels.tolist() == [[[255] * 4] * 4] * 3


def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "two.gif"
    Image.new("RGB", (4, 4), (255, 0, 0)).save(path, save_all=True, append_images=[Image.new("RGB", (4, 4))])
    assert ImageReader().pixels(ImageRef(path=str(path)))[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", r"not an image of a known kind \(JPEG, PNG, WEBP, BMP, GIF\)"),
        (b"GIF", "not an image of a known kind"),
        (b"<html>404</html>", "not an image of a known kind"),
        (png_of(9000, 9000), "9000 x 9000 pixels, more than 67108864"),
        (png_of(60000, 60000), "damaged or not usable: .*decompression bomb"),
    ],
)
def test_what_is_no_usable_image_shows_in_the_header(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    for read in (ImageReader().size, ImageReader().pixels):
        with pytest.raises(BadImage, match=says) as raised:
            read(ImageRef(path=str(path)))
        assert str(raised.value).startswith(f"{path}: ")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_an_image_cut_off_anywhere_is_named_or_whole(tmp_path: Path, kind: str) -> None:
    data = encoded(picture(height=32, width=32), kind)
    path = tmp_path / "cut"
    for length in range(0, len(data) - 16, 37):
        path.write_bytes(data[:length])
        with pytest.raises(BadImage, match=str(path)):
            ImageReader().pixels(ImageRef(path=str(path)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_damage_anywhere_is_named_or_harmless(tmp_path: Path, kind: str) -> None:
    data = encoded(picture(height=24, width=24), kind)
    generator = np.random.default_rng(0)
    path = tmp_path / "damaged"
    outcomes = []
    for _ in range(60):
        damaged = bytearray(data)
        for place in generator.integers(0, min(len(data), 200), 3):
            damaged[place] = generator.integers(0, 256)
        path.write_bytes(damaged)
        try:
            outcomes.append(ImageReader().pixels(ImageRef(path=str(path))).shape[0])
        except BadImage:
            outcomes.append(0)
    assert set(outcomes) <= {0, 3}
    assert 0 in outcomes


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match=r"absent\.png: no such file"):
        ImageReader().size(ImageRef(path=str(tmp_path / "absent.png")))
    with pytest.raises(BadImage, match="is a folder, not an image"):
        ImageReader().size(ImageRef(path=str(tmp_path)))
    with pytest.raises(BadImage, match="null"):
        ImageReader().size(ImageRef(path="a\0b"))


def test_a_cell_of_a_parquet_file_is_read_in_any_order(tmp_path: Path) -> None:
    rows = [pick_a_pic_row(row) for row in range(40)]
    path = write_parquet(tmp_path / "pairs.parquet", rows, row_group_size=18)  # more than a batch
    reader = ImageReader()
    for row in (0, 1, 17, 18, 39, 3, 20, 19):
        for column in ("jpg_0", "jpg_1"):
            content = rows[row][column]
            assert isinstance(content, bytes)
            copy = tmp_path / "copy.jpg"
            copy.write_bytes(content)
            ref = ImageRef(path=str(path), row=row, column=column)
            assert torch.equal(reader.pixels(ref), reader.pixels(ImageRef(path=str(copy))))
            assert reader.size(ref) == tuple(reader.pixels(ref).shape[1:])


def test_a_cell_without_an_image_is_named(tmp_path: Path) -> None:
    rows = [{"jpg_0": b"not an image", "other": 1}, {"jpg_0": None, "other": 2}]
    path = write_parquet(tmp_path / "pairs.parquet", rows)
    with pytest.raises(BadImage, match=r"pairs\.parquet\[0\]\.jpg_0: not an image"):
        ImageReader().size(ImageRef(path=str(path), row=0, column="jpg_0"))
    with pytest.raises(BadImage, match=r"\[1\]\.jpg_0: .* holds NoneType, not the bytes"):
        ImageReader().size(ImageRef(path=str(path), row=1, column="jpg_0"))


def test_a_damaged_page_is_a_bad_image_and_the_other_pages_are_whole(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "pairs.parquet", [pick_a_pic_row(row) for row in range(12)], row_group_size=4)
    group = pq.ParquetFile(path).metadata.row_group(1)
    names = [group.column(index).path_in_schema for index in range(group.num_columns)]
    place = group.column(names.index("jpg_0")).data_page_offset
    content = bytearray(path.read_bytes())
    content[place : place + 16] = b"\xff" * 16
    path.write_bytes(content)
    reader = ImageReader()
    for read in (reader.size, reader.pixels):
        with pytest.raises(BadImage, match=r"pairs\.parquet\[5\]\.jpg_0: the file is damaged there \(.*copy it again"):
            read(ImageRef(path=str(path), row=5, column="jpg_0"))
    for row in (3, 8):
        assert reader.pixels(ImageRef(path=str(path), row=row, column="jpg_0")).shape[0] == 3


def test_a_parquet_file_that_is_not_as_expected_is_an_error(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "pairs.parquet", [{"jpg_0": b"x"}])
    with pytest.raises(UserError, match="has no column 'jpg_1'"):
        ImageReader().size(ImageRef(path=str(path), row=0, column="jpg_1"))
    with pytest.raises(UserError, match="has 1 rows, row 1 was asked for"):
        ImageReader().size(ImageRef(path=str(path), row=1, column="jpg_0"))
    with pytest.raises(UserError, match=r"absent\.parquet: no such file"):
        ImageReader().size(ImageRef(path=str(tmp_path / "absent.parquet"), row=0, column="jpg_0"))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"not a parquet file, or damaged .*copy it again"):
        ImageReader().size(ImageRef(path=str(path), row=0, column="jpg_0"))
