"""A reward whose scores a server computes, started somewhere by `flowrl reward serve`."""

from __future__ import annotations

import time
from typing import Literal
from urllib.parse import urlsplit

import requests
import torch

from flowrl.base.errors import UserError, root_cause
from flowrl.types import HollowReward, RewardInput, TrainedOn
from rewards.http.tokens import read_token, token_of_environment
from rewards.http.wire import (
    CONTENT_TYPE,
    Description,
    WireError,
    decode_description,
    decode_scores,
    encode_request,
)

_CONNECT_S = 10.0
_FIRST_WAIT_S = 0.5  # doubled after each try
_TRY_AGAIN = (502, 503, 504)  # a proxy without its server, or a server that is stopping
_MAX_ANSWER = 16 * 2**20
_WHAT_TO_DO = {
    401: "give the server's token with token_file or token_env",
    404: "is this the url that flowrl reward serve printed?",
    413: "lower batch_size, or raise --max-mib of flowrl reward serve",
    500: "the server's own output has the traceback",
}


class RewardServerError(UserError):
    """A reward server that gives no scores: which one, what failed, how often it was tried, and what to do."""


class HTTPReward:
    """Scores with the reward of a server; fits `flowrl.reward_protocols.Reward`, of the kind that the server's is.

    Everything but the connection is the server's affair: name, kind, what it was trained on, device. `token_file` is a
    file that holds the token, `token_env` the name of an environment variable that does; a token itself is never an
    option, because options are written to a run's config.yaml. `timeout_s` is for one answer. A connection that fails,
    and answers 502, 503 and 504, are tried `retries` times more, first after half a second and each time after twice as
    long. `batch_size` is the server's unless said. Raises TokenError, and RewardServerError at once or when it is
    called.
    """

    def __init__(
        self,
        url: str,
        token_file: str = "",
        token_env: str = "",
        timeout_s: float = 120.0,
        retries: int = 5,
        batch_size: int | None = None,
        device: str = "cpu",
    ) -> None:
        if timeout_s <= 0 or retries < 0:
            raise RewardServerError(
                f"http: timeout_s must be above 0, retries at least 0, got {timeout_s:g} and {retries}"
            )
        self._connection = _Connection(url, _token(token_file, token_env), timeout_s, retries)
        self._description = self._connection.describe()
        self.name = self._description.name
        self.input_kind: Literal["latent", "pixel"] = self._description.input_kind
        trained_on = self._description.trained_on
        self.latent_space: str | None = None if trained_on is None else trained_on.latent_space
        self.batch_size = batch_size or self._description.batch_size

    @staticmethod
    def preflight(url: str, token_file: str, token_env: str, timeout_s: float, retries: int) -> TrainedOn | None:
        """What the server's reward was trained on, as far as the server knows; None for a pixel reward.

        Raises RewardServerError when no server answers as it should.
        """
        asked = HTTPReward(url, token_file=token_file, token_env=token_env, timeout_s=timeout_s, retries=retries)
        return asked._description.trained_on

    @staticmethod
    def hollow(batch_size: int | None) -> HollowReward:
        """Nothing: the network is on the server, where this process needs no memory for it."""
        return HollowReward(samples=batch_size or 1, calls=())

    def __call__(self, batch: RewardInput) -> torch.Tensor:
        """Scores [B] float32 on the CPU, without gradient.

        Raises ValueError when the batch is of the other kind or the server's reward refuses it.
        """
        if self.input_kind == "latent" and (batch.latents is None or batch.condition is None):
            raise ValueError(f"{self.name} scores latents: the batch must hold latents and their text condition")
        if self.input_kind == "pixel" and batch.pixels is None:
            raise ValueError(f"{self.name} scores images: the batch must hold pixels")
        return self._connection.score(batch, self._description.max_bytes)


class _Connection:
    """Where a server is, and how it is asked."""

    def __init__(self, url: str, token: str, timeout_s: float, retries: int) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise RewardServerError(
                "http: url must be that of a reward server, such as http://127.0.0.1:8700, without user, password "
                "and question mark"
            )
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._retries = retries
        self._session = requests.Session()
        # Proxies and .netrc of the environment stay out: the token goes to this server and to nobody else.
        self._session.trust_env = False
        if token:
            self._session.headers["Authorization"] = f"Bearer {token}"

    def describe(self) -> Description:
        """What the server says of its reward."""
        body = self._ask("GET", "/reward")
        try:
            return decode_description(body)
        except WireError as error:
            raise RewardServerError(f"reward server {self.url}: GET /reward: the answer is {error}") from None

    def score(self, batch: RewardInput, max_bytes: int) -> torch.Tensor:
        """The scores [B] float32 of a batch."""
        body = encode_request(batch)
        if len(body) > max_bytes:
            raise RewardServerError(
                f"reward server {self.url}: a batch of {len(batch.prompts)} is {len(body)} bytes, the server takes "
                f"{max_bytes}; {_WHAT_TO_DO[413]}"
            )
        answer = self._ask("POST", "/score", body)
        try:
            return decode_scores(answer, len(batch.prompts))
        except WireError as error:
            raise RewardServerError(f"reward server {self.url}: POST /score: wrong answer: {error}") from None

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """The body of a good answer, tried again as long as that may help."""
        began, wait = time.monotonic(), _FIRST_WAIT_S
        for tried in range(1, self._retries + 2):
            try:
                status, answer = self._send(method, path, body)
            except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
                failure = str(root_cause(error))
            except requests.RequestException as error:
                raise RewardServerError(f"reward server {self.url}: {method} {path}: {self._say(error)}") from None
            else:
                if status not in _TRY_AGAIN:
                    return self._judge(method, path, status, answer)
                failure = f"it answered {status} {_one_line(answer)}"
            if tried <= self._retries:
                time.sleep(wait)
                wait *= 2
        raise RewardServerError(
            f"reward server {self.url}: {method} {path} failed, tried {self._retries + 1} times in "
            f"{time.monotonic() - began:.1f} s: {failure}. Start it with flowrl reward serve where this "
            "machine can reach it; a run that had begun goes on with flowrl train --resume"
        )

    def _send(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        """One try: the status and the body of the answer."""
        headers = {"Content-Type": CONTENT_TYPE} if body is not None else {}
        with self._session.request(
            method,
            self.url + path,
            data=body,
            headers=headers,
            timeout=(min(_CONNECT_S, self._timeout_s), self._timeout_s),
            allow_redirects=False,
            stream=True,
        ) as response:
            answer = b""
            for piece in response.iter_content(2**16):
                answer += piece
                if len(answer) > _MAX_ANSWER:
                    raise RewardServerError(f"reward server {self.url}: {method} {path}: an answer without end")
            return response.status_code, answer

    def _judge(self, method: str, path: str, status: int, answer: bytes) -> bytes:
        """The answer if it is a good one; ValueError when the reward refuses the batch, else RewardServerError."""
        if status == 200:
            return answer
        if status == 422:
            raise ValueError(_one_line(answer))
        advice = f"; {_WHAT_TO_DO[status]}" if status in _WHAT_TO_DO else ""
        raise RewardServerError(
            f"reward server {self.url}: {method} {path}: it answered {status} {_one_line(answer)}{advice}"
        )

    def _say(self, error: requests.RequestException) -> str:
        if isinstance(error, requests.Timeout):
            # Not tried again: the server may be at work on the batch still, and would get it twice.
            return f"no answer within timeout_s = {self._timeout_s:g}; raise it, or lower batch_size"
        return f"{type(error).__name__}: {root_cause(error)}"


def _token(token_file: str, token_env: str) -> str:
    """The token that the options name, "" for none."""
    if token_file and token_env:
        raise RewardServerError("http: give token_file or token_env, not both")
    if token_env:
        return token_of_environment(token_env)
    return read_token(token_file) if token_file else ""


def _one_line(body: bytes) -> str:
    return " ".join(body[:1000].decode("utf-8", "replace").split())
