"""A picture of scored images in the order of their scores, best first; only thumbnails are kept."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from PIL import Image, ImageDraw, ImageFont

_CELL = 192  # pixels, the longer side of a thumbnail
_GAP = 8
_SMALL = 11  # pixels of a letter
_LINE = 15
_LINES = 3  # of a caption: score, file, prompt
_COLUMNS = 8
_GREY = "#555"
LIMIT = 1000  # thumbnails
# Of the usual systems, for scripts that Pillow's own font lacks.
_OTHER_FONTS = (
    *("DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "NotoEmoji-Regular.ttf", "wqy-zenhei.ttc"),
    *("Arial Unicode.ttf", "msyh.ttc", "seguiemj.ttf"),
)
_NO_CHARACTER = "\U0010fffe"
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, kw_only=True)
class _Thumbnail:
    score: float
    order: int  # among equal scores: as they were given
    file: str
    prompt: str
    image: Image.Image


class ContactSheet:
    """Collects scored images and draws the best `limit` of them with rank, score, file and prompt."""

    def __init__(self, label: str, limit: int = LIMIT) -> None:
        self._label = label
        self._limit = limit
        self._kept: list[_Thumbnail] = []
        self._count = 0

    def add(self, order: int, *, score: float, file: str, prompt: str, pixels: torch.Tensor) -> None:
        """Take an image [3, H, W] in [0, 1] with a finite score; `order` decides between equal scores."""
        self._count += 1
        self._kept.append(_Thumbnail(score=score, order=order, file=file, prompt=prompt, image=_thumbnail(pixels)))
        if len(self._kept) >= 2 * self._limit:
            self._kept = self._best()

    def _best(self) -> list[_Thumbnail]:
        return sorted(self._kept, key=lambda one: (-one.score, one.order))[: self._limit]

    def png(self) -> bytes:
        """The sheet as a PNG file; with nothing to show, its title alone."""
        best = self._best()
        columns = max(1, min(_COLUMNS, math.ceil(math.sqrt(len(best)))))
        rows = math.ceil(len(best) / columns)
        width, height = _CELL + _GAP, _CELL + _LINES * _LINE + _GAP
        title = f"{self._label}, best first: {len(best)} of {self._count} scored images"
        font, bold = ImageFont.load_default(_SMALL), ImageFont.load_default(13)
        left = max(columns * width + _GAP, math.ceil(bold.getlength(title)) + 2 * _GAP)
        sheet = Image.new("RGB", (left, rows * height + 3 * _GAP + _LINE), "white")
        draw = ImageDraw.Draw(sheet)
        draw.text((_GAP, _GAP), title, fill="black", font=bold)
        for place, one in enumerate(best):
            x = _GAP + place % columns * width
            y = 2 * _GAP + _LINE + place // columns * height
            sheet.paste(one.image, (x + (_CELL - one.image.width) // 2, y + (_CELL - one.image.height) // 2))
            draw.text((x, y + _CELL), f"{one.score:.4g}", fill="black", font=bold)
            draw.text((x + _CELL, y + _CELL + 2), f"#{place + 1}", fill=_GREY, font=font, anchor="ra")
            _write(draw, (x, y + _CELL + _LINE), one.file, from_left=True)
            _write(draw, (x, y + _CELL + 2 * _LINE), one.prompt, from_left=False)
        stored = io.BytesIO()
        sheet.save(stored, format="PNG")
        return stored.getvalue()


def _thumbnail(pixels: torch.Tensor) -> Image.Image:
    """The image at the largest size that fits a cell; small ones are enlarged by a whole number, without smoothing."""
    bytes_ = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(bytes_)
    if (factor := _CELL // max(image.size)) >= 1:
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((_CELL, _CELL), Image.Resampling.LANCZOS)
    return image


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, *, from_left: bool) -> None:
    """Write as much of a text as fits a cell, in a font that has its characters where there is one."""
    font = _font_for(text)
    draw.text(place, _cut(text, font, from_left=from_left), fill=_GREY, font=font)


def _font_for(text: str) -> _Font:
    fonts = _fonts()
    if text.isascii():
        return fonts[0]
    return max(fonts, key=lambda font: sum(_has(font, character) for character in text))  # of equal ones the first


def _has(font: _Font, character: str) -> bool:
    """Whether a font draws a character otherwise than what is none."""
    return bytes(font.getmask(character)) != bytes(font.getmask(_NO_CHARACTER))


@cache
def _fonts() -> tuple[_Font, ...]:
    return (ImageFont.load_default(_SMALL), *_installed())


def _installed() -> Iterator[_Font]:
    for name in _OTHER_FONTS:
        try:
            yield ImageFont.truetype(name, _SMALL)
        except OSError:  # there is none: a text is drawn as well as it can be
            continue


def _cut(text: str, font: _Font, *, from_left: bool) -> str:
    """The text, shortened until it fits a cell; a path keeps its end."""
    text = " ".join(text.split())
    if font.getlength(text) <= _CELL:
        return text
    while text and font.getlength(text + "...") > _CELL:
        text = text[1:] if from_left else text[:-1]
    return f"...{text}" if from_left else f"{text}..."
