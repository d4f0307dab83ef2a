"""Building blocks of self-contained HTML pages; text is escaped unless it was built here."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources

from PIL import Image

from flowrl.report.wording import fixed
from flowrl.samples import Sheet

_VOID = ("img", "br", "meta")
_SMALL = 128  # pixels; images up to this size are shown two cards in a row
_EMBEDDED_SIZE = 320  # pixels; a page with images of a thousand pixels could not be sent to anyone
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
