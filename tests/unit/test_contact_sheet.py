"""The contact sheet: what stands where, what is left out, and that captions stay in their cells."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image

from flowrl.score import contact_sheet
from flowrl.score.contact_sheet import ContactSheet

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
CELL, STEP, TOP = 192, 200, 31  # of a thumbnail, from one to the next, and above the first row


def plain(colour: tuple[int, int, int], height: int = 8, width: int = 8) -> torch.Tensor:
    return (torch.tensor(colour).float() / 255)[:, None, None].expand(3, height, width)


def drawn(sheet: ContactSheet) -> Image.Image:
    return Image.open(io.BytesIO(sheet.png())).convert("RGB")


def middle(sheet: Image.Image, column: int, row: int = 0) -> tuple[int, ...]:
    """The colour in the middle of a thumbnail."""
    x, y = 8 + column * STEP + CELL // 2, TOP + row * (STEP + 45) + CELL // 2
    pixel = sheet.getpixel((x, y))
    assert isinstance(pixel, tuple)
    return pixel


def sheet_of(*images: tuple[float, tuple[int, int, int]], limit: int = 100, prompt: str = "a cat") -> ContactSheet:
    sheet = ContactSheet("judge", limit)
    for order, (score, colour) in enumerate(images):
        sheet.add(order, score=score, file=f"{order}.png", prompt=prompt, pixels=plain(colour))
    return sheet


def test_the_best_stands_first_and_rows_are_filled_from_the_left() -> None:
    picture = drawn(sheet_of((0.5, GREEN), (-3.0, BLUE), (7.25, RED)))
    assert [middle(picture, 0), middle(picture, 1), middle(picture, 0, 1)] == [RED, GREEN, BLUE]
    assert picture.size == (2 * STEP + 8, 2 * (STEP + 45) + 3 * 8 + 15)


def test_equal_scores_keep_the_order_of_their_files_in_whatever_order_they_came() -> None:
    sheet = ContactSheet("judge")
    for order, colour in ((2, BLUE), (0, RED), (1, GREEN)):
        sheet.add(order, score=1.0, file="x.png", prompt="", pixels=plain(colour))
    picture = drawn(sheet)
    assert [middle(picture, 0), middle(picture, 1), middle(picture, 0, 1)] == [RED, GREEN, BLUE]


def test_only_the_best_are_kept() -> None:
    sheet = sheet_of(*((float(score), GREEN) for score in range(20)), (50.0, RED), (-1.0, BLUE), limit=1)
    assert len(sheet._kept) < 4
    assert middle(drawn(sheet), 0) == RED


def test_a_thumbnail_keeps_its_proportions_and_small_pixels_stay_sharp() -> None:
    sheet = ContactSheet("judge")
    halves = torch.cat([plain(RED, 4, 4), plain(BLUE, 4, 4)], dim=2)  # 8 wide, 4 high
    sheet.add(0, score=0.0, file="a.png", prompt="", pixels=halves)
    picture = drawn(sheet)
    shown = picture.crop((8, TOP, 8 + CELL, TOP + CELL))
    colours = {colour for _, colour in shown.getcolors() or []}
    assert colours == {RED, BLUE, (255, 255, 255)}
    red = [(x, y) for x in range(CELL) for y in range(CELL) if shown.getpixel((x, y)) == RED]
    assert (min(red), max(red)) == ((0, 48), (95, 143))


def test_a_large_image_is_shrunk_into_its_cell() -> None:
    sheet = ContactSheet("judge")
    sheet.add(0, score=0.0, file="a.png", prompt="", pixels=plain(RED, 1200, 300))
    shown = drawn(sheet).crop((8, TOP, 8 + CELL, TOP + CELL))
    red = [(x, y) for x in range(CELL) for y in range(CELL) if shown.getpixel((x, y)) == RED]
    assert (min(red), max(red)) == ((72, 0), (119, 191))


@pytest.mark.parametrize("prompt", ["words " * 100, "x" * 500, "two\nlines " * 50, ""])
def test_a_caption_stays_in_its_cell(prompt: str) -> None:
    picture = drawn(sheet_of((1.0, GREEN), prompt=prompt))
    right = picture.crop((8 + CELL, TOP + CELL, picture.width, picture.height))
    assert {colour for _, colour in right.getcolors() or []} == {(255, 255, 255)}
    caption = picture.crop((8, TOP + CELL, 8 + CELL, picture.height))
    assert len(caption.getcolors() or []) > 1


def test_a_sheet_of_nothing_is_its_title() -> None:
    picture = drawn(ContactSheet("judge"))
    assert picture.height == 39
    assert len(picture.getcolors() or []) > 1


def test_a_prompt_in_a_script_that_the_usual_font_lacks_is_drawn_in_another() -> None:
    if len(contact_sheet._fonts()) == 1:
        pytest.skip("no other font is installed")
    greek, cyrillic, hebrew = "\u03a8\u03a9", "\u0416\u0429", ("\u05d0\u05d1", "\u05d2\u05d3")
    for one, other in ((greek, cyrillic), hebrew):
        drawings = [drawn(sheet_of((1.0, RED), prompt=text)) for text in (one, other)]
        assert drawings[0].tobytes() != drawings[1].tobytes()  # boxes are all alike
