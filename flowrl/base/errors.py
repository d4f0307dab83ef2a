"""The errors that a person can act on: their message is all that needs to be shown."""

from __future__ import annotations


class UserError(Exception):
    """Something is wrong with what was asked for or given; the message says what, where, and what to do.

    `advice` is what to do, where that can be told apart from the problem, so that it can be shown on its own.

    Example: ``UserError("model.path: cut off", advice="copy it again")`` says "model.path: cut off; copy it again"
    """

    def __init__(self, problem: str, *, advice: str = "") -> None:
        super().__init__(f"{problem}; {advice}" if advice else problem)
        self.problem = problem
        self.advice = advice


class CheckpointError(UserError, ValueError):
    """Files of a model that cannot be used; the message names the file, what was found and what to do."""


def root_cause(error: BaseException) -> BaseException:
    """The first cause of an error: what the system said, below the names of the libraries that passed it on."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error
