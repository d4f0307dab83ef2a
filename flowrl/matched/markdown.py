"""The answer as Markdown, for whoever has to tell others."""

from __future__ import annotations

from flowrl.matched.comparison import Findings, gain
from flowrl.matched.verdict import Verdict, decimals_of, spread
from flowrl.report.wording import fixed


def as_markdown(found: Findings, said: Verdict) -> str:
    """The question, the verdict with its support, and a table of every measure at the end."""
    arms = [arm.name for arm in found.record.arms]
    heads = ["", "before", *arms, *(f"{arms[0]} \u2212 {other} [95 %]" for other in arms[1:])]
    lines = [f"**{found.record.question}**", "", said.headline.text, ""]
    lines += [f"- {sentence.text}" for sentence in (*said.support, *said.moves)]
    lines += ["", _line(heads), _line(["---"] * len(heads))]
    for measure in found.measures:
        pairs = found.of(measure)
        decimals = max(decimals_of(pair.at[-1]) for pair in pairs)
        cells = [measure.title, fixed(measure.mean(0, 0), decimals) if measure.steps[0] == 0 else ""]
        for place, arm in enumerate(arms):
            one = gain(measure, place)
            trained = " (trained)" if arm in measure.trained_by else ""
            moved = f" ({fixed(one.mean, decimals, signed=True)})" if one is not None else ""
            cells.append(f"{fixed(measure.mean(place, -1), decimals)}{moved}{trained}")
        cells += [spread(pair.at[-1].mean, pair.at[-1].prompts, decimals) for pair in pairs]
        lines.append(_line(cells))
    return "\n".join(lines) + "\n"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
