"""Building blocks of pages: switches that keep to themselves and images over time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from page_reader import Page
from PIL import Image

from flowrl.report.page import Html, Picture, PictureCard, PictureRow, page, switched, tag, time_cards


def inputs(html: str) -> list[dict[str, str]]:
    """The radio buttons, in order."""
    return [attributes for name, attributes in Page(html).tags if name == "input"]


def picture(shade: int, *scores: float, size: int = 8, marked: bool = False) -> Picture:
    """A grey image with scores of two rewards."""
    named = list(zip(["oracle", "hpsv3"], scores, strict=False))
    return Picture(image=Image.new("RGB", (size, size), (shade,) * 3), alt=f"{shade}", scores=named, marked=marked)


def card(*, size: int = 8) -> PictureCard:
    """Two arms from one base, with three checkpoints each."""
    base = picture(10, 0.5, 1.25, size=size)
    first = [base, picture(20, 0.6, 1.5, size=size), picture(30, 0.7, 1.75, size=size, marked=True)]
    second = [
        picture(10, 0.5, 1.25, size=size),
        picture(40, 0.55, 2.5, size=size),
        picture(50, -0.125, 2.75, size=size),
    ]
    rows = [
        PictureRow(label="ditreward run", slot=1, pictures=first),
        PictureRow(label="hpsv3 run", slot=2, pictures=second, style="hollow"),
    ]
    return PictureCard(prompt="a red <cube>", columns=["base", "step 10", "step 20"], rows=rows)


def placed(html: str) -> list[tuple[str, str]]:
    """Class and place of each cell that holds an image."""
    found = [(attributes.get("class", ""), attributes.get("style", "")) for _, attributes in Page(html).tags]
    return [one for one in found if one[0].startswith("cell")]


def test_a_switch_shows_the_first_panel_until_another_is_chosen() -> None:
    html = switched("Axis", [("steps", tag("p", "one")), ("hours", tag("p", "two"))])
    assert [one["type"] for one in inputs(html)] == ["radio", "radio"]
    assert ["checked" in one for one in inputs(html)] == [True, False]
    labels = [attributes["for"] for name, attributes in Page(html).tags if name == "label"]
    assert labels == [one["id"] for one in inputs(html)]
    assert Page(html).words == ["Axis", "steps", "hours", "one", "two"]


def test_switches_of_one_page_do_not_move_each_other() -> None:
    html = page(
        "A",
        switched("Axis", [("steps", tag("p", "one")), ("hours", tag("p", "two"))]),
        switched("Axis", [("steps", tag("p", "three")), ("hours", tag("p", "four"))]),
        switched("Other", [("steps", tag("p", "one")), ("hours", tag("p", "two"))]),
    )
    names = [one["name"] for one in inputs(html)]
    assert [names[0], names[2], names[4]] == [names[1], names[3], names[5]]
    assert len(set(names)) == 3
    assert len({one["id"] for one in inputs(html)}) == 6


def test_empty_panels_are_left_out_and_one_panel_needs_no_switch() -> None:
    only = tag("p", "one")
    assert switched("Axis", [("steps", only), ("hours", Html(""))]) == only
    assert switched("Axis", []) == ""
    with pytest.raises(ValueError, match=r"at most 6 panels, got 7: Axis"):
        switched("Axis", [(str(i), only) for i in range(7)])


def test_every_panel_that_is_allowed_has_a_rule() -> None:
    style = page("A")
    assert all(f":nth-of-type({i}):checked ~ .panels > :nth-child({i})" in style for i in range(1, 7))


def test_images_over_time_stand_by_arm_and_column() -> None:
    html = time_cards([card()])
    assert placed(html) == [
        ("cell shared first", "--column:0;--row:0"),
        ("cell", "--column:1;--row:0"),
        ("cell kept c1", "--column:2;--row:0"),
        ("cell", "--column:1;--row:1"),
        ("cell", "--column:2;--row:1"),
    ]
    assert [image.getpixel((0, 0)) for image in Page(html).images()] == [(i,) * 3 for i in (10, 20, 30, 40, 50)]
    words = Page(html).words
    assert {"a red <cube>", "base", "step 10", "step 20", "ditreward run", "hpsv3 run"} <= set(words)


def test_scores_stand_under_the_images_and_their_names_above_them() -> None:
    html = time_cards([card()], ring="the checkpoint to keep")
    words = Page(html).words
    assert words[:4] == ["Under each image: ", "oracle", ", hpsv3", "the checkpoint to keep"]
    scores = [word for word in words if word.lstrip("\u2212")[:1].isdigit()]
    assert scores == ["0.50", "1.25", "0.60", "1.50", "0.70", "1.75", "0.55", "2.50", "\u22120.12", "2.75"]
    assert words.count("oracle") == 1


def test_what_differs_is_not_shared() -> None:
    one = card()
    other = replace(one.rows[1], pictures=[picture(11, 0.5, 1.25), *one.rows[1].pictures[1:]])
    assert len(Page(time_cards([replace(one, rows=[one.rows[0], other])])).images()) == 6
    rescored = replace(one.rows[1], pictures=[picture(10, 0.5, 1.5), *one.rows[1].pictures[1:]])
    assert len(Page(time_cards([replace(one, rows=[one.rows[0], rescored])])).images()) == 6
    assert len(Page(time_cards([replace(one, rows=one.rows[:1])])).images()) == 3


def test_a_missing_image_leaves_its_place_and_a_missing_score_a_dash() -> None:
    one = card()
    gap = replace(one.rows[1], pictures=[None, picture(40, 0.5), picture(50, 0.5, float("nan"))])
    html = time_cards([replace(one, rows=[one.rows[0], gap])])
    assert len(placed(html)) == 6
    assert len(Page(html).images()) == 5
    assert Page(html).words.count("\u2013") == 2
    with pytest.raises(ValueError, match=r"ditreward run: 3 pictures for 2 columns"):
        replace(one, columns=["base", "step 10"])


def test_large_images_are_reduced_and_no_card_is_no_page() -> None:
    assert {image.size for image in Page(time_cards([card(size=512)])).images()} == {(320, 320)}
    assert time_cards([]) == ""
