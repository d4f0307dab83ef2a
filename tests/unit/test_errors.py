"""What an error says and what it advises, apart and together, also after a journey between processes."""

from __future__ import annotations

import pickle

import pytest

from flowrl.base.errors import CheckpointError, UserError
from flowrl.config import ConfigError
from flowrl.fetch.published import FetchError


@pytest.mark.parametrize("kind", [UserError, CheckpointError, ConfigError, FetchError])
def test_problem_and_advice_are_one_message_and_can_be_told_apart(kind: type[UserError]) -> None:
    error = kind("a.bin: cut off; 3 bytes are missing", advice="copy it again")
    for one in (error, pickle.loads(pickle.dumps(error))):
        assert str(one) == "a.bin: cut off; 3 bytes are missing; copy it again"
        assert (one.problem, one.advice) == ("a.bin: cut off; 3 bytes are missing", "copy it again")


def test_an_error_without_advice_is_its_problem() -> None:
    error = CheckpointError("a.bin: cut off; copy it again")
    assert (str(error), error.problem, error.advice) == (error.args[0], "a.bin: cut off; copy it again", "")
