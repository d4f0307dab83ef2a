"""What judging will cost, before a request is sent."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from flowrl.judge.judgement import Tokens
from flowrl.judge.rubric import SYSTEM, user_text

_BYTES_PER_TOKEN = 4.0  # of English text, roughly, in the vocabularies in use
_PATCH = 28  # pixels a side that become one token in Qwen2-VL and its kin


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Of a million tokens, in any currency; 0 for none.

    Example: ``Prices(input=1.25, output=10.0)``
    """

    input: float = 0.0
    output: float = 0.0

    def __bool__(self) -> bool:
        """Whether there is a price."""
        return self.input > 0 or self.output > 0

    def cost(self, tokens: Tokens) -> float:
        """What so many tokens cost."""
        return (tokens.input * self.input + tokens.output * self.output) / 1e6


@dataclass(frozen=True, kw_only=True)
class Question:
    """A request that will be sent, as far as its size matters.

    Example: ``Question(height=1024, width=1024, prompt="a cat")``
    """

    height: int
    width: int
    prompt: str


def estimate(questions: Iterable[Question], *, image_tokens: int | None, answer_tokens: int) -> Tokens:
    """The tokens of these requests and their answers, roughly: text by its bytes, an image by its size.

    `image_tokens` is what an image counts for where that is known; `answer_tokens` is what an answer does, to which the
    thinking of a model that thinks must be added.
    """
    total = Tokens()
    for one in questions:
        patches = math.ceil(one.height / _PATCH) * math.ceil(one.width / _PATCH)
        text = math.ceil(len((SYSTEM + user_text(one.prompt)).encode()) / _BYTES_PER_TOKEN)
        counted = patches if image_tokens is None else image_tokens
        total += Tokens(answers=1, input=text + counted, output=answer_tokens)
    return total
