"""Building blocks of self-contained HTML pages; text is escaped unless it was built here."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from PIL import Image

from flowrl.report.wording import fixed
from flowrl.samples import Sheet

_VOID = ("img", "br", "meta", "input")
_MOST_PANELS = 6  # of a switch; page.css has a rule for each
_SMALL = 128  # pixels; images up to this size are shown two cards in a row
_EMBEDDED_SIZE = 320  # pixels; a page with images of a thousand pixels could not be sent to anyone
_LABEL_WIDTH = 84  # pixels, of the names of rows
_LEAST_WIDTH = 82  # pixels, of a small image over time and the gap beside it
_MOST_COLUMNS = 4  # images of a prompt side by side; more would leave no room for their scores


class Html(str):
    """Markup that may enter a page as it is. Anything else is text and gets escaped."""

    __slots__ = ()


def tag(name: str, *children: str, classes: str = "", attributes: Mapping[str, str] | None = None) -> Html:
    """One element; children and attribute values are escaped unless they are Html."""
    given = ({"class": classes} if classes else {}) | dict(attributes or {})
    opening = "".join(f' {key}="{html.escape(value)}"' for key, value in given.items())
    if name in _VOID:
        return Html(f"<{name}{opening}>")
    return Html(f"<{name}{opening}>{joined(children)}</{name}>")


def joined(parts: Iterable[str]) -> Html:
    """Parts one after the other, escaped unless they are Html."""
    return Html("".join(part if isinstance(part, Html) else html.escape(part) for part in parts))


def page(title: str, *sections: str) -> Html:
    """A whole document: style and script are inside, nothing is fetched."""
    files = resources.files("flowrl.report")
    style = Html(files.joinpath("page.css").read_text(encoding="utf-8"))
    script = Html(files.joinpath("page.js").read_text(encoding="utf-8"))
    head = [
        tag("meta", attributes={"charset": "utf-8"}),
        tag("meta", attributes={"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        tag("meta", attributes={"name": "color-scheme", "content": "light dark"}),
        # Refuses whatever a hostile file might smuggle in: nothing loads, only this script and style run.
        tag("meta", attributes={"http-equiv": "Content-Security-Policy", "content": _POLICY}),
        tag("title", title),
        tag("style", style),
    ]
    body = tag("body", tag("main", *sections), tag("script", script))
    return Html(f'<!doctype html>\n<html lang="en">{tag("head", *head)}{body}</html>\n')


_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def section(title: str, *children: str, intro: str = "") -> Html:
    """A titled part of the page; nothing at all where it has no content."""
    if not any(children):
        return Html("")
    note = tag("p", intro, classes="intro") if intro else ""
    return tag("section", tag("h2", title), note, *children)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, classes: str = "") -> Html:
    """A table that scrolls sideways where it is too wide; the first column names the row."""
    if not rows:
        return Html("")
    header = tag("thead", tag("tr", *(tag("th", cell, attributes={"scope": "col"}) for cell in head)))
    lines = [
        tag("tr", tag("th", row[0], attributes={"scope": "row"}), *(tag("td", cell) for cell in row[1:]))
        for row in rows
    ]
    return tag("div", tag("table", header, tag("tbody", *lines), classes=classes), classes="scroll")


def facts(rows: Sequence[tuple[str, str]]) -> Html:
    """Names and values."""
    return tag("dl", *(joined([tag("dt", name), tag("dd", value)]) for name, value in rows)) if rows else Html("")


def folded(summary: str, *children: str) -> Html:
    """Content that opens on a click."""
    return tag("details", tag("summary", summary), tag("div", *children))


def switched(name: str, panels: Sequence[tuple[str, Html]]) -> Html:
    """Named panels of which one is seen, the first until another is chosen; it needs no script.

    `name` is what the choice is about, such as "Horizontal axis". Panels without content are left out, a single one
    has nothing to choose. Raises ValueError for more than six panels.
    """
    filled = [(label, content) for label, content in panels if content]
    if len(filled) > _MOST_PANELS:
        raise ValueError(f"a switch has at most {_MOST_PANELS} panels, got {len(filled)}: {name}")
    if len(filled) < 2:
        return joined(content for _, content in filled)
    # From all that is inside, so that two switches of one name on a page do not move each other.
    key = hashlib.sha256("\0".join([name, *(part for one in filled for part in one)]).encode()).hexdigest()[:12]
    choices: list[Html] = []
    for index, (label, _) in enumerate(filled):
        attributes = {"type": "radio", "name": f"switch-{key}", "id": f"switch-{key}-{index}"}
        choices.append(tag("input", attributes=attributes | ({"checked": ""} if index == 0 else {})))
        choices.append(tag("label", label, attributes={"for": f"switch-{key}-{index}"}))
    shown = tag("div", *(tag("div", content) for _, content in filled), classes="panels")
    return tag("fieldset", tag("legend", name), *choices, shown, classes="switch")


def code(text: str) -> Html:
    """Text as typed, in lines."""
    return tag("pre", tag("code", text))


def share_bar(share: float, slot: int = 1) -> Html:
    """A bar for a share in [0, 1]."""
    width = f"width:{min(max(share, 0.0), 1.0):.2%}"
    return tag("span", tag("span", classes=f"c{slot}", attributes={"style": width}), classes="bar")


def picture(image: Image.Image, alt: str, title: str = "") -> Html:
    """An image inside the page: small ones as they are, large ones reduced."""
    buffer = io.BytesIO()
    if image.width > _EMBEDDED_SIZE:
        image = image.resize((_EMBEDDED_SIZE, _EMBEDDED_SIZE * image.height // image.width), Image.Resampling.LANCZOS)
        image.save(buffer, format="JPEG", quality=88)
        kind = "jpeg"
    else:
        image.save(buffer, format="PNG", optimize=True)
        kind = "png"
    source = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    size = {"width": str(image.width), "height": str(image.height)}
    return tag("img", attributes={"src": source, "alt": alt, **size} | ({"title": title} if title else {}))


def sample_cards(sheets: Sequence[tuple[str, Sheet]], shown: Sequence[str]) -> Html:
    """A card per prompt with a labelled row of samples per sheet, so that a column keeps its noise.

    Prompts are those of the first sheet that every sheet has. `shown` are the scores to print under each image.
    """
    first = sheets[0][1]
    columns = min(_MOST_COLUMNS, *(sheet.columns for _, sheet in sheets))
    cards = []
    for prompt in dict.fromkeys(first.prompts):
        if not all(prompt in sheet.prompts for _, sheet in sheets):
            continue
        rows = [_sample_row(label, sheet, sheet.prompts.index(prompt), columns, shown) for label, sheet in sheets]
        cards.append(tag("figure", tag("figcaption", prompt), *rows, classes="card"))
    width = "460px" if first.image_size <= _SMALL else "920px"
    style = f"--columns:{columns};--card:{width}"
    return tag("div", *cards, classes="cards", attributes={"style": style}) if cards else Html("")


def _sample_row(label: str, sheet: Sheet, row: int, columns: int, shown: Sequence[str]) -> Html:
    cells = []
    for column in range(columns):
        scores = {name: sheet.score(name, row, column) for name in sheet.scores}
        every = "\n".join(f"{name} {fixed(score, 3)}" for name, score in scores.items() if score is not None)
        values = [(name, scores.get(name)) for name in shown]
        captions = [tag("span", fixed(score, 2), attributes={"data-score": name}) for name, score in values
                    if score is not None]  # fmt: skip
        image = picture(sheet.cell(row, column), f"{label}: {sheet.prompts[row]}, sample {column + 1}", every)
        cells.append(tag("div", image, *captions, classes="cell"))
    return tag("div", tag("span", label, classes="label"), *cells, classes="samples")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One image of a card with the scores under it, in the order of the legend; `marked` rings it."""

    image: Image.Image
    alt: str
    scores: Sequence[tuple[str, float]] = ()
    marked: bool = False


@dataclass(frozen=True, kw_only=True)
class PictureRow:
    """What one arm made of a prompt at each time; None where there is no image. `slot` and `style` as of its curve."""

    label: str
    slot: int
    pictures: Sequence[Picture | None]
    style: str = "marked"


@dataclass(frozen=True, kw_only=True)
class PictureCard:
    """A prompt over time: one column per checkpoint, one row per arm.

    Example: ``PictureCard(prompt="a red cube", columns=["base", "step 10"], rows=[PictureRow(...), PictureRow(...)])``
    """

    prompt: str
    columns: Sequence[str]
    rows: Sequence[PictureRow]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.pictures) != len(self.columns):
                raise ValueError(f"{row.label}: {len(row.pictures)} pictures for {len(self.columns)} columns")


def time_cards(cards: Sequence[PictureCard], *, ring: str = "") -> Html:
    """A card per prompt with its images over time, under a legend of their scores; nothing where there is no card.

    A column that is the same in all rows, such as that of the base model, is shown once beside them. `ring` says what
    it means that a picture is marked.
    """
    if not cards:
        return Html("")
    pictures = [one for card in cards for row in card.rows for one in row.pictures if one is not None]
    names = list(dict.fromkeys(name for one in pictures for name, _ in one.scores))
    keys = [tag("li", "Under each image: ", *_in_order(names))] if names else []
    if ring and any(one.marked for one in pictures):
        keys.append(tag("li", tag("i", classes="ring"), ring))
    largest = max((one.image.width for one in pictures), default=0)
    most = _SMALL if largest <= _SMALL else _EMBEDDED_SIZE
    width = _LABEL_WIDTH + max(len(card.columns) for card in cards) * (_LEAST_WIDTH if most == _SMALL else _SMALL)
    attributes = {"style": f"--card:{width}px;--most:{most}px"}
    drawn = tag("div", *(_time_card(card, names) for card in cards), classes="cards", attributes=attributes)
    return tag("div", tag("ul", *keys, classes="legend") if keys else "", drawn, classes="over-time")


def _in_order(names: Sequence[str]) -> list[Html]:
    return [tag("span", f"{', ' if index else ''}{name}", classes="name") for index, name in enumerate(names)]


def _time_card(card: PictureCard, names: Sequence[str]) -> Html:
    shared = [_is_shared([row.pictures[column] for row in card.rows]) for column in range(len(card.columns))]
    cells = [_placed(tag("span", head), "head", column=column) for column, head in enumerate(card.columns)]
    cells += [
        _timed(picture, names, card.rows[0].slot if len(card.rows) == 1 else 0, "cell shared", column=column)
        for column, picture in enumerate(card.rows[0].pictures if card.rows else [])
        if shared[column]
    ]
    for index, row in enumerate(card.rows):
        label = joined([tag("i", classes=f"c{row.slot} {row.style}"), row.label])
        cells.append(_placed(label, "arm", row=index))
        cells += [
            _timed(picture, names, row.slot, "cell", column=column, row=index)
            for column, picture in enumerate(row.pictures)
            if not shared[column]
        ]
    size = {"style": f"--columns:{len(card.columns)};--rows:{len(card.rows)}"}
    grid = tag("div", *cells, classes="times based" if shared[:1] == [True] else "times", attributes=size)
    scrolled = tag(
        "div", grid, classes="scroll", attributes={"tabindex": "0", "role": "group", "aria-label": card.prompt}
    )
    return tag("figure", tag("figcaption", card.prompt), scrolled, classes="card")


def _is_shared(pictures: Sequence[Picture | None]) -> bool:
    """Whether there are several, of which all show the same; what they are called may differ."""
    first, *others = pictures
    return bool(others) and all(
        first is not None
        and one is not None
        and (one.image is first.image or one.image == first.image)
        and (list(one.scores), one.marked) == (list(first.scores), first.marked)
        for one in others
    )


def _timed(
    picture_: Picture | None, names: Sequence[str], slot: int, classes: str, *, column: int, row: int = 0
) -> Html:
    if picture_ is None:
        return _placed(Html(""), classes, column=column, row=row)
    scores = {name: value for name, value in picture_.scores if math.isfinite(value)}
    every = "\n".join(f"{name} {fixed(value, 3)}" for name, value in scores.items())
    captions = [
        tag("span", fixed(scores[name], 2) if name in scores else "\u2013", attributes={"data-score": name})
        for name in names
    ]
    ring = f" kept c{slot}" if picture_.marked else ""
    shown = tag("div", picture(picture_.image, picture_.alt, every), *captions)
    return _placed(shown, classes + ring, column=column, row=row)


def _placed(content: Html, classes: str, *, column: int = 0, row: int = 0) -> Html:
    classes += "" if column or classes == "arm" else " first"
    return tag("div", content, classes=classes, attributes={"style": f"--column:{column};--row:{row}"})
