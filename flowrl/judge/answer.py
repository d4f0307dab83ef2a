"""Reads what a judge answers, and takes nothing for a score that is none."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from flowrl.judge.judgement import HIGHEST, LOWEST, Judgement, Outcome
from flowrl.judge.rubric import DIMENSIONS, RATIONALE, WHOLE

_FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*)\n[ \t]*```", re.DOTALL)
# How models decline in words, where they do not say so in the field made for it. Tells two outcomes without scores
# apart, and no more.
_DECLINING = re.compile(
    r"(i['\u2019]?m|i am)?\s*(very\s+)?(sorry\b|unable to\b)|i\s+(can['\u2019]?t|cannot|won['\u2019]?t|will not)\b",
    re.IGNORECASE,
)
_SHOWN = 80  # characters of an answer in a message
_DECLINED = ("content_filter", "refusal")  # finish reasons


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A chat completion, as far as a judge needs it; the raw text, so that it can be read anew without being paid anew.

    Example: ``Answer(text='{"overall": ...}', finish="stop", input_tokens=1604, output_tokens=131)``
    """

    text: str
    refusal: str = ""  # what the endpoint says of a refusal
    finish: str = ""  # why the model stopped
    input_tokens: int = 0
    output_tokens: int = 0


class MalformedAnswer(ValueError):
    """An answer, or a body, of another form than was asked for; the message says which part is wrong."""


def read_completion(body: bytes) -> Answer:
    """The first choice of a chat completion; raises MalformedAnswer when the body is no chat completion."""
    found = _json(body)
    try:
        choice = found["choices"][0]
        message = choice["message"]
        text, refusal = message.get("content"), message.get("refusal")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise MalformedAnswer("no chat completion: it has no choices[0].message") from None
    if not isinstance(text, str | None) or not isinstance(refusal, str | None):
        raise MalformedAnswer("no chat completion: its content is not text")
    finish = choice.get("finish_reason")
    usage = found.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    return Answer(
        text=text or "",
        refusal=refusal or "",
        finish=finish if isinstance(finish, str) else "",
        input_tokens=_tokens(counts.get("prompt_tokens")),
        output_tokens=_tokens(counts.get("completion_tokens")),
    )


def judged(answer: Answer) -> Judgement:
    """What an answer says: scores, or that it was refused or is malformed."""
    if answer.refusal or answer.finish in _DECLINED:
        return Judgement(outcome="refused", problem=f"refused: {_short(answer.refusal) or answer.finish}")
    try:
        scores, rationale = read_scores(answer.text)
    except MalformedAnswer as error:
        declined = _DECLINING.match(answer.text.strip()) is not None
        outcome: Outcome = "refused" if declined else "malformed"
        cut = " (cut off at the token limit)" if answer.finish == "length" else ""
        said = f": {_short(answer.text)}" if answer.text.strip() else ""
        problem = f"refused{said}" if declined else f"malformed answer: {error}{cut}{said}"
        return Judgement(outcome=outcome, problem=problem)
    return Judgement(outcome="scored", scores=scores, rationale=rationale)


def read_scores(text: str) -> tuple[tuple[float, ...], str]:
    """The scores in the order of `DIMENSIONS`, and the rationale, "" where it is left out.

    The text must be one JSON object, bare or in one Markdown fence, with exactly the five scores, each once: integers
    within 1..10, for overall any number within; and beside them at most a rationale. Raises MalformedAnswer.
    """
    bare = text.strip()
    fenced = _FENCED.fullmatch(bare)
    found = _json((fenced[1] if fenced else bare).encode())
    if not isinstance(found, dict):
        raise MalformedAnswer(f"must be a JSON object, is {type(found).__name__}")
    if missing := [name for name in DIMENSIONS if name not in found]:
        raise MalformedAnswer(f"lacks {', '.join(missing)}")
    if unknown := [name for name in found if name not in (*DIMENSIONS, RATIONALE)]:
        raise MalformedAnswer(f"has unknown keys: {_short(', '.join(unknown))}")
    rationale = found.get(RATIONALE, "")
    if not isinstance(rationale, str):
        raise MalformedAnswer(f"{RATIONALE} must be text, is {type(rationale).__name__}")
    return tuple(_score(name, found[name]) for name in DIMENSIONS), rationale


def _score(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise MalformedAnswer(f"{name} must be a number, is {_short(repr(value))}")
    if not LOWEST <= value <= HIGHEST:
        raise MalformedAnswer(f"{name} must lie within {LOWEST:g}..{HIGHEST:g}, is {_short(repr(value))}")
    if name in WHOLE and not math.floor(value) == value:
        raise MalformedAnswer(f"{name} must be a whole number, is {value!r}")
    return float(value)


def _json(data: bytes) -> Any:
    """JSON without repeated keys and without NaN and infinities."""
    try:
        return json.loads(data, object_pairs_hook=_object, parse_constant=_no_constant)
    except MalformedAnswer:
        raise
    except (ValueError, RecursionError) as error:
        raise MalformedAnswer(f"not JSON: {_short(str(error))}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise MalformedAnswer(f"has {_short(twice[0])} twice")
    return dict(pairs)


def _no_constant(text: str) -> Any:
    raise MalformedAnswer(f"has {text}, which is no number of JSON")


def _tokens(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."
