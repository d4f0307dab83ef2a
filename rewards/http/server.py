"""Serves one reward over HTTP: what `flowrl reward serve` starts.

============= =========================== ===============================================================
request       answer                      else
============= =========================== ===============================================================
GET /health   200 "ok", without token
GET /reward   200, a Description as JSON  401 without the token
POST /score   200, scores                 400 malformed, 401, 411 or 413 by its length, 415 by its type,
                                          422 refused by the reward, 500 the reward failed, 503 stopping
============= =========================== ===============================================================
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import socket
import sys
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from flowrl.base.errors import UserError
from flowrl.reward_call import RewardInputError, score_in_parts
from flowrl.reward_protocols import Reward
from flowrl.types import TrainedOn
from rewards.http.wire import CONTENT_TYPE, MAX_BYTES, Description, WireError, decode_request, encode_scores

_logger = logging.getLogger(__name__)
_SOCKET_TIMEOUT_S = 30.0  # for a client that says nothing more
_PIECE = 2**16


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """The status and the body of an answer."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


def _text(status: int, message: str) -> _Answer:
    return _Answer(status=status, body=message.encode("utf-8", "replace"))


class RewardServer(ThreadingHTTPServer):
    """Listens from the moment it is made; `serve_forever` answers, one batch at a time, until `close`.

    `trained_on` is what a latent reward says of its training, where it says more than its latent space. `port` 0 takes
    a free one. Raises UserError when it cannot listen there, and when `host` can be reached from other machines and
    there is no token.
    """

    daemon_threads = False  # so that closing waits for the answers that are under way

    def __init__(
        self,
        reward: Reward,
        *,
        trained_on: TrainedOn | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str = "",
        max_bytes: int = MAX_BYTES,
    ) -> None:
        require_token(host, has_token=bool(token))
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise UserError(f"reward serve: cannot listen on {host}:{port}: {error}; choose another --port") from None
        self.reward = reward
        self.max_bytes = max_bytes
        self._trained_on = trained_on
        self._token = token.encode()
        self._one_batch = threading.Lock()
        self._stopping = False

    @property
    def url(self) -> str:
        """Where it is asked; by the machine's name when it listens on all of its addresses."""
        host = str(self.server_address[0])
        name = socket.gethostname() if ipaddress.ip_address(host).is_unspecified else host
        return f"http://{name}:{self.server_address[1]}"

    @property
    def description(self) -> Description:
        """What it says of its reward."""
        space = self.reward.latent_space
        return Description(
            name=self.reward.name,
            input_kind=self.reward.input_kind,
            trained_on=self._trained_on or (TrainedOn(latent_space=space) if space is not None else None),
            batch_size=self.reward.batch_size,
            max_bytes=self.max_bytes,
        )

    def close(self) -> None:
        """Stop listening once the batch at hand is answered; those that wait for their turn get a 503."""
        self._stopping = True
        self.server_close()

    def handle_error(self, request: object, client_address: tuple[str, int]) -> None:
        """A client that left is a line; anything else is a defect, with its traceback."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            _logger.warning("%s left: %s", client_address[0], error)
        else:
            _logger.exception("answering %s failed", client_address[0])

    def allows(self, authorization: str) -> bool:
        """Whether a request with this header may go on."""
        expected = b"Bearer " + self._token
        return not self._token or hmac.compare_digest(authorization.encode("utf-8", "replace"), expected)

    def score(self, body: bytes) -> _Answer:
        """The answer to the body of a request for scores."""
        try:
            batch = decode_request(body)
        except WireError as error:
            return _text(400, str(error))
        with self._one_batch:
            if self._stopping:
                return _text(503, "this server is stopping")
            try:
                # In parts: a client may send more than fit in memory.
                scores = score_in_parts(self.reward, len(batch.prompts), batch.take)
            except RewardInputError as error:
                return _text(422, str(error.__cause__))  # the client says of which reward
            except Exception as error:  # whatever it is, the server goes on
                _logger.exception("reward %r failed", self.reward.name)
                says = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
                return _text(500, " ".join(says.split()))
        return _Answer(status=200, body=encode_scores(scores), content_type=CONTENT_TYPE)


class _Handler(BaseHTTPRequestHandler):
    """One request; the connection ends with it, so that a closing server waits for work and not for idle clients."""

    server: RewardServer
    timeout = _SOCKET_TIMEOUT_S
    server_version = "flowrl-reward"
    sys_version = ""

    def do_GET(self) -> None:
        """GET /health and GET /reward."""
        if self.path == "/health":
            self._send(_text(200, "ok\n"))
        elif self.path != "/reward":
            self._send(_text(404, "there is GET /health, GET /reward and POST /score"))
        elif not self.server.allows(self.headers.get("Authorization", "")):
            self._send(_text(401, "the token is missing or wrong"))
        else:
            body = self.server.description.encode()
            self._send(_Answer(status=200, body=body, content_type="application/json"))

    def do_POST(self) -> None:
        """POST /score."""
        length = self.headers.get("Content-Length", "")
        size = int(length) if length.isascii() and length.isdecimal() and len(length) < 19 else -1
        refusal = self._refuse_unread(size)
        if refusal is None:
            body = self.rfile.read(size)
            cut = len(body) < size
            refusal = _text(400, f"the body ends after {len(body)} of {size} bytes") if cut else None
            self._send(refusal or self.server.score(body))
            return
        self._send(refusal)
        left = min(size, self.server.max_bytes)
        while left > 0 and (piece := self.rfile.read(min(left, _PIECE))):  # or the client never sees the answer
            left -= len(piece)

    def _refuse_unread(self, size: int) -> _Answer | None:
        """The answer to a request whose body need not be read; None for one that may go on."""
        if not self.server.allows(self.headers.get("Authorization", "")):
            return _text(401, "the token is missing or wrong")
        if self.path != "/score":
            return _text(404, "there is GET /health, GET /reward and POST /score")
        if size < 0:
            return _text(411, "Content-Length is missing or no number")
        if size > self.server.max_bytes:
            return _text(413, f"{size} bytes are more than the {self.server.max_bytes} that this server takes")
        # Also keeps the pages of a browser on this machine from asking: they may not send this type unasked.
        if self.headers.get("Content-Type", "") != CONTENT_TYPE:
            return _text(415, f"Content-Type must be {CONTENT_TYPE}")
        return None

    def _send(self, answer: _Answer) -> None:
        if answer.status >= 400:
            self.log_error("%s %s: %d %s", self.command, self.path, answer.status, answer.body.decode())
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Nothing: good answers are not logged, the others by `_send`."""

    def log_message(self, format: str, *args: object) -> None:
        """One line of what went wrong; what a client wrote cannot break it."""
        line = "".join(letter if letter.isprintable() else " " for letter in format % args)
        _logger.warning("%s %s", self.client_address[0], line)


def require_token(host: str, *, has_token: bool) -> None:
    """Raise UserError when a server on `host` can be reached from other machines and asks for no token."""
    if not has_token and not is_loopback(host):
        raise UserError(
            f"reward serve: --host {host} can be reached from other machines and needs a token; add --token-file "
            "FILE, which is made when it is not there"
        )


def is_loopback(host: str) -> bool:
    """Whether an address is one that only this machine can reach; a name other than localhost is not trusted to be."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
