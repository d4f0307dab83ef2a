"""Sample sheets: grids of images with one row per prompt, their scores beside them, on disk as PNG and JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A grid as it stands on disk: one row per prompt, one column per sample.

    Example: 8 prompts with 4 samples of 64 pixels make an image 256 wide and 512 high.
    """

    step: int
    prompts: list[str]
    columns: int
    image_size: int  # pixels, height and width of a cell
    scores: dict[str, list[list[float | None]]]  # name -> [row][column]
    image: Image.Image

    def cell(self, row: int, column: int) -> Image.Image:
        """One image of the grid; raises IndexError outside of it."""
        if not (0 <= row < len(self.prompts) and 0 <= column < self.columns):
            raise IndexError(f"cell ({row}, {column}) must lie in a grid of {len(self.prompts)} x {self.columns}")
        left, top = column * self.image_size, row * self.image_size
        return self.image.crop((left, top, left + self.image_size, top + self.image_size))

    def score(self, name: str, row: int, column: int) -> float | None:
        """The score of one image, None where there is none."""
        rows = self.scores.get(name, [])
        return rows[row][column] if row < len(rows) and column < len(rows[row]) else None


def grid(images: torch.Tensor, columns: int) -> torch.Tensor:
    """Lay images [n, 3, H, W], uint8 or floating in [0, 1], out row by row: uint8 [3, rows * H, columns * W].

    Cells that are left over are black. Raises ValueError on another shape, or where there is nothing to lay out.
    """
    import torch

    if images.ndim != 4 or images.shape[1] != 3 or images.shape[0] == 0 or columns < 1:
        raise ValueError(f"grid needs images [n, 3, H, W] and columns >= 1, got {list(images.shape)} and {columns}")
    if images.is_floating_point():
        images = (images.float().clamp(0, 1) * 255).round().to(torch.uint8)
    elif images.dtype != torch.uint8:
        raise ValueError(f"grid needs images in uint8 or floating point, got {images.dtype}")
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    cells = images.new_zeros(rows * columns, channels, height, width)
    cells[:count] = images
    cells = cells.reshape(rows, columns, channels, height, width)
    return cells.permute(2, 0, 3, 1, 4).reshape(channels, rows * height, columns * width)


def save_png(image: torch.Tensor, path: Path) -> None:
    """Write an image [3, H, W] uint8 as PNG."""
    Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy()).save(path, format="PNG")


def load_png(path: Path) -> torch.Tensor:
    """Read a PNG as [3, H, W] uint8."""
    import numpy as np
    import torch

    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def write_sheet(
    directory: Path, step: int, images: torch.Tensor, prompts: list[str], scores: Mapping[str, list[list[float]]]
) -> torch.Tensor:
    """Write the samples of some prompts, images [prompts * columns, 3, S, S] prompt-major, and return their grid.

    `scores` holds one row per prompt for each name. The PNG is written first, so that a JSON file means a whole sheet.
    Raises ValueError where images and prompts do not fit.
    """
    if not prompts or len(images) % len(prompts) or images.shape[-1] != images.shape[-2]:
        raise ValueError(f"a sheet of {len(prompts)} prompts needs the same number of square images for each, "
                         f"got {list(images.shape)}")  # fmt: skip
    columns = len(images) // len(prompts)
    sheet = grid(images, columns)
    directory.mkdir(parents=True, exist_ok=True)
    save_png(sheet, directory / f"step_{step:06d}.png")
    finite = {name: [[_finite(value) for value in row] for row in rows] for name, rows in scores.items()}
    facts = {"prompts": prompts, "columns": columns, "image_size": int(images.shape[-1]), "scores": finite}
    (directory / f"step_{step:06d}.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
    return sheet


def _finite(value: float) -> float | None:
    return float(value) if value - value == 0 else None  # JSON knows neither NaN nor infinity


def sheet_steps(directory: Path) -> list[int]:
    """The steps of which there is a sheet, in order."""
    found = (re.fullmatch(r"step_(\d+)\.json", path.name) for path in directory.glob("step_*.json"))
    return sorted(int(match[1]) for match in found if match)


def read_sheet(directory: Path, step: int) -> Sheet | None:
    """Read a sheet; None where it is missing, torn, or its picture does not have the size that it says."""
    try:
        facts = json.loads((directory / f"step_{step:06d}.json").read_text(encoding="utf-8"))
        prompts, columns, image_size = [str(text) for text in facts["prompts"]], facts["columns"], facts["image_size"]
        with Image.open(directory / f"step_{step:06d}.png") as file:
            image = file.convert("RGB")
        if image.size != (columns * image_size, len(prompts) * image_size):
            return None
        scores = {
            str(name): [[None if value is None else float(value) for value in row] for row in rows]
            for name, rows in facts["scores"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Sheet(step=step, prompts=prompts, columns=columns, image_size=image_size, scores=scores, image=image)
