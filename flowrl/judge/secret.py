"""The key of an endpoint: read from the environment, sent to the endpoint, and written nowhere."""

from __future__ import annotations

import os
from dataclasses import replace

import requests

from flowrl.base.errors import UserError
from flowrl.judge.answer import Answer

_COVER = "[key]"


class Secret:
    """A key, "" for none; no text of an error, a log or a file shows it. Requests takes it as an authorisation."""

    def __init__(self, key: str = "") -> None:
        self._key = key

    @classmethod
    def of_environment(cls, variable: str) -> Secret:
        """The key in an environment variable, none where it is not set; raises UserError for what can be no key."""
        key = os.environ.get(variable, "").strip()
        if not key.isascii() or (key and not key.isprintable()) or " " in key:
            raise UserError(f"the environment variable {variable} must hold a key, one word of ASCII; copy it again")
        return cls(key)

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """The request with the key as a bearer token."""
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def __bool__(self) -> bool:
        """Whether there is a key."""
        return bool(self._key)

    def __repr__(self) -> str:
        """Says nothing of the key."""
        return "Secret()"

    def covered(self, text: str) -> str:
        """A text from outside without the key, should an endpoint send it back."""
        return text.replace(self._key, _COVER) if self._key else text

    def covered_answer(self, answer: Answer) -> Answer:
        """An answer without the key."""
        return replace(
            answer,
            text=self.covered(answer.text),
            refusal=self.covered(answer.refusal),
            finish=self.covered(answer.finish),
        )
