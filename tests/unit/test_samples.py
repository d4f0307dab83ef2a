"""Sample sheets: their layout, and how they survive being written, torn and read."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from flowrl.samples import grid, load_png, read_sheet, save_png, sheet_steps, write_sheet


def numbered(count: int, size: int = 4) -> torch.Tensor:
    """Images [count, 3, size, size] uint8 whose every value is their number."""
    return torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 3, size, size).contiguous()


def test_grid_lays_out_row_by_row() -> None:
    sheet = grid(numbered(5), columns=2)
    assert sheet.shape == (3, 12, 8)
    assert sheet.dtype == torch.uint8
    assert sheet[0, ::4, ::4].tolist() == [[0, 1], [2, 3], [4, 0]]
    assert torch.equal(sheet[:, 4:8, 4:8], numbered(5)[3])


def test_grid_rounds_floats_and_clamps() -> None:
    images = torch.tensor([-0.5, 0.0, 0.5, 1.0, 1.7])[:, None, None, None].expand(5, 3, 2, 2)
    assert grid(images, columns=5)[0, 0, ::2].tolist() == [0, 0, 128, 255, 255]
    assert grid(images.to(torch.bfloat16), columns=5)[0, 0, ::2].tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize(
    ("images", "columns"),
    [
        (torch.zeros(0, 3, 4, 4), 2),
        (torch.zeros(2, 1, 4, 4), 2),
        (torch.zeros(3, 4, 4), 2),
        (torch.zeros(2, 3, 4, 4), 0),
        (torch.zeros(2, 3, 4, 4, dtype=torch.int64), 1),
    ],
)
def test_grid_refuses_what_is_not_images(images: torch.Tensor, columns: int) -> None:
    with pytest.raises(ValueError, match="grid needs images"):
        grid(images, columns)


def test_png_returns_what_was_saved(tmp_path: Path) -> None:
    image = torch.randint(0, 256, (3, 20, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    save_png(image, tmp_path / "image.png")
    assert torch.equal(load_png(tmp_path / "image.png"), image)


def test_sheet_returns_cells_and_scores(tmp_path: Path) -> None:
    prompts = ["a red circle", "a blue square", "a pink triangle"]
    scores = {"oracle": [[0.1, 0.2], [0.3, math.nan], [0.5, 0.6]]}
    written = write_sheet(tmp_path / "samples", 20, numbered(6), prompts, scores)
    assert torch.equal(written, grid(numbered(6), 2))
    assert torch.equal(load_png(tmp_path / "samples" / "step_000020.png"), written)
    facts = json.loads((tmp_path / "samples" / "step_000020.json").read_text())
    assert facts == {
        "prompts": prompts,
        "columns": 2,
        "image_size": 4,
        "scores": {"oracle": [[0.1, 0.2], [0.3, None], [0.5, 0.6]]},
    }
    sheet = read_sheet(tmp_path / "samples", 20)
    assert sheet is not None
    assert sheet.prompts == prompts
    assert [sheet.cell(row, column).getpixel((0, 3)) for row in range(3) for column in range(2)] == [
        (number, number, number) for number in range(6)
    ]
    assert (sheet.score("oracle", 2, 0), sheet.score("oracle", 1, 1), sheet.score("other", 0, 0)) == (0.5, None, None)
    for row, column in ((3, 0), (0, 2), (-1, 0)):
        with pytest.raises(IndexError, match="must lie in a grid of 3 x 2"):
            sheet.cell(row, column)


def test_sheet_needs_as_many_images_for_each_prompt(tmp_path: Path) -> None:
    for images in (numbered(5), torch.zeros(6, 3, 4, 8)):
        with pytest.raises(ValueError, match="a sheet of 3 prompts needs"):
            write_sheet(tmp_path, 0, images, ["a", "b", "c"], {})
    assert sheet_steps(tmp_path) == []


def test_broken_sheets_are_passed_over(tmp_path: Path) -> None:
    for step in (0, 20, 40, 60):
        write_sheet(tmp_path, step, numbered(2), ["a"], {})
    png, torn = tmp_path / "step_000020.png", tmp_path / "step_000060.json"
    png.write_bytes(png.read_bytes()[:40])
    torn.write_text(torn.read_text()[:-10])
    (tmp_path / "step_000040.png").unlink()
    assert sheet_steps(tmp_path) == [0, 20, 40, 60]
    assert [read_sheet(tmp_path, step) is not None for step in (0, 20, 40, 60, 80)] == [
        True,
        False,
        False,
        False,
        False,
    ]


def test_a_sheet_that_lies_about_its_size_is_passed_over(tmp_path: Path) -> None:
    write_sheet(tmp_path, 0, numbered(2), ["a"], {})
    facts = json.loads((tmp_path / "step_000000.json").read_text())
    (tmp_path / "step_000000.json").write_text(json.dumps(facts | {"columns": 3}))
    assert read_sheet(tmp_path, 0) is None
