"""A real HTTP server that speaks as much of chat completions as a judge needs: well, badly, slowly, or not at all."""

from __future__ import annotations

import base64
import io
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

KEY = "sk-judge-0123456789"
SCORES = {"prompt_alignment": 8, "visual_quality": 7, "realism": 6, "detail_richness": 5, "overall": 6.5}
INPUT_TOKENS, OUTPUT_TOKENS = 1000, 100  # of every answer


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request, as it came in."""

    number: int  # from 0
    prompt: str
    image: Image.Image
    body: dict[str, Any]
    authorization: str
    path: str
    seconds: float  # time.monotonic


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What is sent back."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    wait_s: float = 0.0  # before anything is sent
    trickle_s: float = 0.0  # between two bytes of the body
    hang_up: bool = False  # close without a word


def answer(text: str | None, *, finish: str = "stop", refusal: str | None = None, wait_s: float = 0.0) -> Reply:
    """A chat completion with this text."""
    message = {"role": "assistant", "content": text, "refusal": refusal}
    usage = {"prompt_tokens": INPUT_TOKENS, "completion_tokens": OUTPUT_TOKENS}
    facts = {"choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": usage}
    return Reply(body=json.dumps(facts).encode(), wait_s=wait_s)


def good(*, wait_s: float = 0.0, rationale: str = "fine") -> Reply:
    """A chat completion as it should be, with SCORES."""
    return answer(json.dumps({**SCORES, "rationale": rationale}), wait_s=wait_s)


def error(status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None) -> Reply:
    """An error as OpenAI writes it."""
    body = json.dumps({"error": {"message": message, "code": code}}).encode()
    return Reply(status=status, body=body, headers=headers or {})


@dataclass
class JudgeServer:
    """Answers each request as `behave` says; what was asked stands in `asked`."""

    behave: Callable[[Asked], Reply] = lambda asked: good()
    asked: list[Asked] = field(default_factory=list)
    sent: int = 0  # answers that went out whole
    most_at_once: int = 0
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)
    at_once: int = 0

    def script(self, *replies: Reply) -> None:
        """One reply after the other, the last one for ever."""
        self.behave = lambda asked: replies[min(asked.number, len(replies) - 1)]


@contextmanager
def running_judge() -> Iterator[JudgeServer]:
    """A server within the context, that answers well until it is told otherwise."""
    state = JudgeServer()

    class Handler(_Handler):
        judge = state

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    judge: JudgeServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.judge.lock:
            asked = self._asked(body)
            self.judge.asked.append(asked)
            self.judge.at_once += 1
            self.judge.most_at_once = max(self.judge.most_at_once, self.judge.at_once)
        try:
            reply = self.judge.behave(asked)
            time.sleep(reply.wait_s)
            self._send(reply)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the other side has given up
        finally:
            with self.judge.lock:
                self.judge.at_once -= 1

    def _asked(self, body: dict[str, Any]) -> Asked:
        text, image = body["messages"][1]["content"]
        found = re.search(r"<prompt>\n(.*)\n</prompt>", text["text"], re.DOTALL)
        assert found is not None
        png = base64.b64decode(image["image_url"]["url"].removeprefix("data:image/png;base64,"))
        return Asked(
            number=len(self.judge.asked),
            prompt=found[1],
            image=Image.open(io.BytesIO(png)),
            body=body,
            authorization=self.headers.get("Authorization", ""),
            path=self.path,
            seconds=time.monotonic(),
        )

    def _send(self, reply: Reply) -> None:
        if reply.hang_up:
            self.close_connection = True
            return
        self.send_response(reply.status)
        self.send_header("Content-Length", str(len(reply.body)))
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        pieces = (
            [reply.body[place : place + 1] for place in range(len(reply.body))] if reply.trickle_s else [reply.body]
        )
        for piece in pieces:
            self.wfile.write(piece)
            self.wfile.flush()
            time.sleep(reply.trickle_s)
        with self.judge.lock:
            self.judge.sent += reply.status == 200

    def log_message(self, format: str, *args: object) -> None:
        pass
