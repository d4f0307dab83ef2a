"""The answer as Markdown, for whoever has to tell others."""

from __future__ import annotations

from collections.abc import Sequence

from flowrl.matched.at_end import end_rows
from flowrl.matched.comparison import Findings
from flowrl.matched.verdict import Verdict, spread
from flowrl.report.wording import fixed


def as_markdown(found: Findings, said: Verdict) -> str:
    """The question, the verdict with its support, and a table of every measure at the end."""
    arms = [arm.name for arm in found.record.arms]
    heads = ["", "before", *arms, *(f"{arms[0]} \u2212 {other} [95 %]" for other in arms[1:])]
    lines = [f"**{found.record.question}**", "", said.headline.text, ""]
    lines += [f"- {sentence.text}" for sentence in (*said.support, *said.moves)]
    lines += ["", _line(heads), _line(["---"] * len(heads))]
    for row in end_rows(found):
        cells = [row.measure.title, row.before]
        for arm, (value, one) in zip(arms, row.after, strict=True):
            moved = f" ({fixed(one.mean, row.decimals, signed=True)})" if one is not None else ""
            cells.append(f"{value}{moved}{' (trained)' if arm in row.measure.trained_by else ''}")
        cells += [spread(pair.at[-1].mean, pair.at[-1].prompts, row.decimals) for pair in row.pairs]
        lines.append(_line(cells))
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
