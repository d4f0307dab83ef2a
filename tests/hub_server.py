"""A real HTTP server that speaks as much of the Hub as a download needs, and fails where a test wants it to."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40
TOKEN = "hf_open"  # opens gated repositories


@dataclass(frozen=True)
class Asked:
    """One request: its method and path, where a Range began (0 without one), and what it said of who asks."""

    method: str
    path: str
    start: int = 0
    authorization: str = ""


@dataclass
class HubServer:
    """Repositories by name, with files by name; what goes wrong is set by a test at any time."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)  # files that are said to be stored with LFS, so have a sha256
    gated: set[str] = field(default_factory=set)  # repositories
    cut: dict[str, int] = field(default_factory=dict)  # a file whose answer ends after so many bytes, once
    status: dict[str, int] = field(default_factory=dict)  # a file that is answered so, also after it was cut
    sent: dict[str, bytes] = field(default_factory=dict)  # a file in whose place this is sent
    moved: dict[str, str] = field(default_factory=dict)  # a file that is sent for to this server, as large ones are
    stalled: dict[str, threading.Event] = field(default_factory=dict)  # a file whose half is sent before this is set
    asked: list[Asked] = field(default_factory=list)
    url: str = ""

    def gets(self, name: str = "") -> list[Asked]:
        """The requests for the content of files, or of the one called `name`."""
        return [
            one for one in self.asked if one.method == "GET" and "/resolve/" in one.path and one.path.endswith(name)
        ]


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """A server on a free port of this machine."""
    hub = HubServer()
    http = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        for event in hub.stalled.values():
            event.set()
        http.shutdown()
        http.server_close()
        thread.join()


def git_name(content: bytes) -> str:
    """What git calls a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that leave in the middle, as an interrupted one does."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            raise


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # an answer in two parts waits 40 ms with it

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        """Keep the output of the tests clean."""

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.hub.asked.append(Asked(self.command, path, start, self.headers.get("Authorization", "")))
        if path.startswith("/api/models/"):
            self._describe(path.removeprefix("/api/models/"))
        else:
            repository, _, rest = path.strip("/").partition("/resolve/")
            self._file(repository, rest.partition("/")[2], start)

    def _describe(self, repository: str) -> None:
        if repository not in self.hub.repositories:
            return self._refuse(404, "RepoNotFound")
        siblings = []
        for name, content in self.hub.repositories[repository].items():
            entry: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": git_name(content)}
            if name in self.hub.large:
                sha = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": sha, "size": len(content), "pointerSize": 130}
            siblings.append(entry)
        gated = "auto" if repository in self.hub.gated else False
        body = json.dumps({"id": repository, "sha": COMMIT, "gated": gated, "siblings": siblings}).encode()
        self._send(200, body)

    def _file(self, repository: str, name: str, start: int) -> None:
        files = self.hub.repositories.get(repository)
        if files is None or name not in files:
            return self._refuse(404, "RepoNotFound" if files is None else "EntryNotFound")
        if repository in self.hub.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._refuse(403 if self.headers.get("Authorization") else 401, "GatedRepo")
        if name in self.hub.status and name not in self.hub.cut:
            return self._refuse(self.hub.status[name], "")
        if name in self.hub.moved:
            return self._send(302, b"", {"Location": self.hub.moved[name] + self.path})
        whole = self.hub.sent.get(name, files[name])
        headers = {"ETag": f'"{git_name(files[name])}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(whole) - 1}/{len(whole)}"
        content, announced = whole[start:], len(whole) - start
        if self.command == "GET" and name in self.hub.cut:
            content = content[: self.hub.cut.pop(name)]
        self._send(206 if start else 200, content, headers, announced=announced, name=name)

    def _send(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        *,
        announced: int | None = None,
        name: str = "",
    ) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(announced or len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if name in self.hub.stalled:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.hub.stalled[name].wait()
            body = body[len(body) // 2 :]
        try:
            self.wfile.write(body)
        except OSError:
            return  # the client has left
        if announced is not None and len(body) < announced:
            self.close_connection = True  # in the middle of what was announced

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code} if code else None)
