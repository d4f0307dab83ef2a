"""Puts one question to a chat-completions endpoint, again as long as that may help."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter

from flowrl.base.errors import UserError, root_cause
from flowrl.judge.answer import Answer, MalformedAnswer, read_completion
from flowrl.judge.secret import Secret
from flowrl.judge.waiting import Gate, Halt, backoff, retry_after

_CONNECT_S = 10.0
_MAX_ANSWER = 4 * 2**20  # bytes
_LONGEST_PAUSE_S = 900.0  # what an endpoint asks for beyond it ends the round instead
_PATH = "/chat/completions"
_OF_THIS_IMAGE = (400, 413, 422)
_FILTERED = ("content_filter", "content_policy_violation", "moderation_blocked")  # codes of errors
_NO_CREDIT = "insufficient_quota"
_MAX_SHOWN = 300  # characters of an endpoint's words


class EndpointError(UserError):
    """An endpoint of which no answer can be had: which one, what it said, and what to do."""


class Rejected(Exception):
    """The endpoint turns this request down, and would again; the message is its words."""


class Unanswered(Exception):
    """No answer came, however often it was asked; the message is the last reason."""


@dataclass(frozen=True, kw_only=True)
class EndpointSetting:
    """Where an endpoint is, and how patiently it is asked.

    Example: ``EndpointSetting(url="https://api.openai.com/v1", model="gpt-5", secret=Secret.of_environment(name))``
    """

    url: str  # before /chat/completions
    model: str
    secret: Secret
    key_variable: str = ""  # that the key comes from, for advice
    timeout_s: float = 120.0  # for one whole answer
    retries: int = 5  # of a question that no answer came to
    concurrency: int = 8  # questions under way at a time


@dataclass(frozen=True, kw_only=True)
class _Reply:
    """What came back over HTTP."""

    status: int
    body: bytes
    wait: str | None  # Retry-After


class Connection:
    """An endpoint, for as many threads as its setting says. Raises EndpointError for a URL that can be none."""

    def __init__(self, setting: EndpointSetting) -> None:
        parts = urlsplit(setting.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query:
            raise EndpointError(
                "--endpoint must be the URL of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1, without "
                "user, password and question mark"
            )
        self.url = setting.url.rstrip("/").removesuffix(_PATH)
        self._setting = setting
        self._gate = Gate()
        self._session = requests.Session()
        # A proxy of the environment sees nothing of what goes over https; over http it would see the key.
        self._session.trust_env = parts.scheme == "https"
        self._session.auth = setting.secret  # not a header, which a .netrc would replace
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=setting.concurrency))

    def ask(self, body: bytes, key: str, halt: Halt) -> Answer:
        """The answer to a question, without the secret. `key` is the question's; it sets the jitter of waits.

        A connection that fails, a timeout, a body that is no chat completion, 408, 429 and 5xx are tried again, as
        late as Retry-After says where it is there. Raises Rejected, Unanswered, EndpointError for what no question
        would get through, and Halted.
        """
        reason = ""
        for tried in range(1, self._setting.retries + 2):
            self._gate.wait(halt)
            pause = None
            try:
                reply = self._send(body)
                if reply.status == 200:
                    return self._setting.secret.covered_answer(read_completion(reply.body))
                if (refused := self._settled(reply)) is not None:
                    return refused
                reason = f"it answered {reply.status} {self._words(reply.body)}".rstrip()
                pause = retry_after(reply.wait)
            except requests.RequestException as error:
                reason = self._said(error)
            except MalformedAnswer as error:
                reason = self._setting.secret.covered(f"it answered 200 with {error}")
            if tried <= self._setting.retries:
                self._pause(pause, backoff(tried, key), reason, halt)
        raise Unanswered(f"no answer, tried {self._setting.retries + 1} times: {reason}")

    def _pause(self, asked: float | None, otherwise: float, reason: str, halt: Halt) -> None:
        """Wait until the next try; what the endpoint asks for holds for all questions."""
        if asked is None:
            halt.sleep(otherwise)
            return
        if asked > _LONGEST_PAUSE_S:
            raise self._error(f"{reason}: it asks to wait {asked:.0f} s", "start again then; what was answered is kept")
        self._gate.close(asked)
        # Not all at the very moment: a limit that one question met, many would.
        halt.sleep(asked + 0.1 * otherwise)

    def _settled(self, reply: _Reply) -> Answer | None:
        """None where another try may help, an Answer for a refusal; raises Rejected or EndpointError for the rest."""
        code = _error_field(reply.body, "code")
        words = f"it answered {reply.status} {self._words(reply.body)}".rstrip()
        if reply.status in _OF_THIS_IMAGE and code in _FILTERED:
            return Answer(text="", refusal=self._words(reply.body) or code)
        if reply.status in _OF_THIS_IMAGE:
            raise Rejected(words)
        if reply.status == 429 and code == _NO_CREDIT:
            raise self._error(words, "the account has no credit left; add some and start again")
        if reply.status in (408, 425, 429) or reply.status >= 500:
            return None
        raise self._error(words, self._advice(reply.status))

    def _advice(self, status: int) -> str:
        variable = self._setting.key_variable
        has = f"the key in {variable} is not the endpoint's" if self._setting.secret else "it wants a key"
        if status == 401:
            return f"{has}: set the environment variable {variable} to the right one, or name another with --key-env"
        if status == 403:
            return (
                f"the key in {variable} may not use the model {self._setting.model!r}; ask for it, or use another key"
            )
        if status in (404, 405):
            return f"is --endpoint what stands before {_PATH}, and {self._setting.model!r} a model that it has?"
        if 300 <= status < 400:
            return "give --endpoint the URL that it leads to: the key is not carried elsewhere"
        return "the request itself is wrong for this endpoint"

    def _send(self, body: bytes) -> _Reply:
        """One try; raises requests.Timeout when the whole answer takes longer than the time that there is."""
        limit = self._setting.timeout_s
        end = time.monotonic() + limit
        with self._session.post(
            self.url + _PATH,
            data=body,
            headers={"Content-Type": "application/json"},
            timeout=(min(_CONNECT_S, limit), limit),
            allow_redirects=False,
            stream=True,
        ) as response:
            answer = bytearray()
            # Byte by byte, as a read of several waits for all of them: a body that trickles in must end in time too.
            for piece in response.iter_content(1):
                answer += piece
                if time.monotonic() > end:
                    raise requests.Timeout
                if len(answer) > _MAX_ANSWER:
                    raise requests.RequestException(f"an answer of more than {_MAX_ANSWER} bytes")
            return _Reply(status=response.status_code, body=bytes(answer), wait=response.headers.get("Retry-After"))

    def _said(self, error: requests.RequestException) -> str:
        """Why nothing came, in the words of the system."""
        if isinstance(error, requests.Timeout):
            return f"nothing within --timeout {self._setting.timeout_s:g} s"
        cause = root_cause(error)
        return self._setting.secret.covered(f"{cause}" or type(cause).__name__)

    def _words(self, body: bytes) -> str:
        """What an endpoint says of an error, in one short line without the secret."""
        text = _error_field(body, "message") or body.decode("utf-8", "replace")
        return " ".join(self._setting.secret.covered(text).split())[:_MAX_SHOWN]

    def _error(self, problem: str, advice: str) -> EndpointError:
        return EndpointError(f"judge endpoint {self.url}: {problem}", advice=advice)


def _error_field(body: bytes, name: str) -> str:
    """A text of an error object, {"error": {...}}, bare, or in a list, as OpenAI, vLLM and Gemini write it; else ""."""
    try:
        found: Any = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if isinstance(found, list) and found:
        found = found[0]
    if isinstance(found, dict) and isinstance(found.get("error"), dict):
        found = found["error"]
    value = found.get(name) if isinstance(found, dict) else None
    return value if isinstance(value, str) else ""
