"""What a judge is, and what it says of one image."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import torch

LOWEST, HIGHEST = 1.0, 10.0  # of every score of every judge
OVERALL = "overall"  # the last dimension of every judge

# scored: there are scores. refused: the judge declines to judge this image. malformed: it answers in another form than
# it was asked for. rejected: the request itself is turned down. unanswered: no answer came.
Outcome = Literal["scored", "refused", "malformed", "rejected", "unanswered"]
OUTCOMES: tuple[Outcome, ...] = ("scored", "refused", "malformed", "rejected", "unanswered")


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """What answers cost, as the endpoint counts it; 0 where it does not say.

    Example: ``Tokens(answers=1, input=1604, output=131)``
    """

    answers: int = 0  # that came, of whatever form
    input: int = 0
    output: int = 0

    def __add__(self, other: Tokens) -> Tokens:
        """The sum of both."""
        return Tokens(
            answers=self.answers + other.answers, input=self.input + other.input, output=self.output + other.output
        )


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What became of one image: scores, or why there are none. What is not a score is never a number.

    Example: ``Judgement(outcome="scored", scores=(8.0, 7.0, 6.0, 7.0, 7.5), rationale="Sharp; one hand is odd.")``
    """

    outcome: Outcome
    scores: tuple[float, ...] = ()  # in [1, 10], in the order of the judge's dimensions; () unless scored
    rationale: str = ""  # the judge's own words
    problem: str = ""  # why there are no scores
    tokens: Tokens = Tokens()  # of all answers about this image, those of earlier starts too
    bought: Tokens = Tokens()  # of those that this call asked for


class Judge(Protocol):
    """Scores images against their prompts from 1 to 10, higher is better; each image by itself, none beside another."""

    name: str
    dimensions: tuple[str, ...]  # what it scores; the last is "overall"

    def judge(self, images: Iterable[torch.Tensor], prompts: Iterable[str]) -> Generator[Judgement, None, None]:
        """One judgement per image, in their order.

        An image is [3, H, W] uint8, of any size. Images are taken when their turn comes, so that not all of them need
        be in memory. Whoever leaves before the end closes the generator. Raises UserError where no image at all can be
        judged.
        """
        ...
