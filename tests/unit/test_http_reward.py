"""A reward behind HTTP: the same scores as without, whose fault a failure is, and what a stranger may not do."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import save

from flowrl.base.errors import UserError
from flowrl.config import ConfigError, RewardSpec
from flowrl.reward_loading import LatentSource, check_rewards, preflight
from flowrl.reward_protocols import Reward
from flowrl.types import RewardInput, TextCondition, TrainedOn
from rewards.http import HTTPReward, RewardServerError
from rewards.http.server import RewardServer
from rewards.http.tokens import TokenError, read_or_make_token
from rewards.http.wire import (
    CONTENT_TYPE,
    Description,
    WireError,
    decode_description,
    decode_request,
    decode_scores,
    encode_request,
    encode_scores,
)
from tests.cheap_rewards import TINY_SPACE, Brightness, Broken, LatentNorm, SeedEcho, WrongShape

TOKEN = "a-secret-of-two"
PIXELS = RewardInput(
    prompts=("a cat", "ein K\u00e4fer", "\U0001f600\n"),
    seeds=torch.tensor([1, 2**62, 3]),
    pixels=torch.linspace(0, 1, 3 * 3 * 4 * 4).reshape(3, 3, 4, 4),
)
SHARED = TextCondition(embeds=torch.randn(1, 5, 7).bfloat16(), pooled=torch.randn(1, 6).half())
LATENTS = RewardInput(
    prompts=("a cat",) * 4,
    seeds=torch.arange(4),
    latents=torch.randn(8, 16, 2, 3)[::2],
    condition=TextCondition(embeds=SHARED.embeds.expand(4, -1, -1), pooled=SHARED.pooled.expand(4, -1)),
)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other at once."""
    monkeypatch.setattr("rewards.http.client._FIRST_WAIT_S", 0.01)


@contextmanager
def served(reward: Reward, **options: Any) -> Iterator[RewardServer]:
    """A server that answers within the context."""
    server = RewardServer(reward, **options)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.close()
        thread.join()


class Scripted(ThreadingHTTPServer):
    """Gives one answer after the other, the last one for ever: (status, body, bytes of it that are sent)."""

    def __init__(self, *answers: tuple[int, bytes, int]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), _Scripted)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Scripted(BaseHTTPRequestHandler):
    server: Scripted

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.server.asked.append(f"{self.command} {self.path}")
        status, body, sent = self.server.answers[min(len(self.server.asked), len(self.server.answers)) - 1]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Location", self.server.url + "/health")
        self.end_headers()
        self.wfile.write(body[:sent])

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


def whole(status: int, body: bytes) -> tuple[int, bytes, int]:
    return status, body, len(body)


PIXEL_REWARD = Description(name="bright", input_kind="pixel", trained_on=None, batch_size=2, max_bytes=10**6)
DESCRIBED = whole(200, PIXEL_REWARD.encode())


def post(server: RewardServer, body: bytes, path: str = "/score", **headers: str) -> tuple[int, str]:
    """A request as anybody may write it: the status and the text of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
    connection.request("POST", path, body, {"Content-Type": CONTENT_TYPE, **headers})
    with connection.getresponse() as response:
        return response.status, response.read().decode("utf-8", "replace")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_batch_arrives_as_it_was_sent() -> None:
    read = decode_request(encode_request(PIXELS))
    assert read.prompts == PIXELS.prompts
    assert read.pixels is not None
    assert PIXELS.pixels is not None
    assert torch.equal(read.seeds, PIXELS.seeds)
    assert torch.equal(read.pixels, PIXELS.pixels)
    assert read.latents is None
    assert read.condition is None


def test_a_condition_that_all_samples_share_travels_once_and_arrives_for_each() -> None:
    assert LATENTS.condition is not None
    assert LATENTS.latents is not None
    apart = TextCondition(embeds=LATENTS.condition.embeds.clone(), pooled=LATENTS.condition.pooled.clone())
    own = RewardInput(prompts=LATENTS.prompts, seeds=LATENTS.seeds, latents=LATENTS.latents, condition=apart)
    saved = len(encode_request(own)) - len(encode_request(LATENTS))
    assert saved >= 3 * 2 * (5 * 7 + 6)
    for batch in (LATENTS, own):
        read = decode_request(encode_request(batch))
        assert read.condition is not None
        assert read.latents is not None
        assert torch.equal(read.latents, LATENTS.latents)
        assert read.condition.embeds.dtype == torch.bfloat16
        assert torch.equal(read.condition.embeds, apart.embeds)
        assert torch.equal(read.condition.pooled, apart.pooled)


def test_scores_arrive_as_they_were_sent_nan_included() -> None:
    scores = torch.tensor([1.5, float("nan"), -3.0])
    read = decode_scores(encode_scores(scores), 3)
    assert read.dtype == torch.float32
    assert torch.equal(read.nan_to_num(7.0), scores.nan_to_num(7.0))
    with pytest.raises(WireError, match=r"scores must be a tensor of 1 dimensions with 2 rows, got \[3\]"):
        decode_scores(encode_scores(scores), 2)


def body(prompts: str | None = '["a", "b"]', version: str = "2", **tensors: torch.Tensor) -> bytes:
    metadata = {"flowrl_reward": version} | ({"prompts": prompts} if prompts is not None else {})
    given = {"seeds": torch.tensor([1, 2]), "pixels": torch.zeros(2, 3, 4, 4)} | tensors
    return save(given, metadata=metadata)


MALFORMED = {
    "empty": (b"", "the body is not safetensors"),
    "noise": (b"\x80\x04\x95" * 40, "the body is not safetensors"),
    "cut": (body()[:-8], "the body is not safetensors"),
    "longer": (body() + b"x", "the body is not safetensors"),
    "plain": (save({"seeds": torch.tensor([1])}), "the metadata must hold flowrl_reward = '2', got None"),
    "version": (body(version="1"), "the metadata must hold flowrl_reward = '2', got '1'"),
    "no prompts": (body(prompts=None), "the metadata must hold prompts"),
    "prompts no list": (body(prompts='{"a": 1}'), "the metadata must hold prompts, a JSON list of at least one text"),
    "prompts no texts": (body(prompts="[1, 2]"), "the metadata must hold prompts, a JSON list of at least one text"),
    "prompts none": (body(prompts="[]"), "the metadata must hold prompts, a JSON list of at least one text"),
    "prompts deep": (body(prompts="[" * 100_000), "the metadata must hold prompts"),
    "both kinds": (body(latents=torch.zeros(2, 4)), r"got \['latents', 'pixels', 'seeds'\]"),
    "another tensor": (body(extra=torch.zeros(2)), r"got \['extra', 'pixels', 'seeds'\]"),
    "pixels bytes": (body(pixels=torch.zeros(2, 3, 4, 4).byte()), "pixels must be float32, got uint8"),
    "pixels flat": (body(pixels=torch.zeros(2, 48)), "pixels must be a tensor of 4 dimensions with 2 rows"),
    "pixels grey": (body(pixels=torch.zeros(2, 1, 4, 4)), r"pixels must be \[B, 3, H, W\], got \[2, 1, 4, 4\]"),
    "pixels none": (body(pixels=torch.zeros(2, 3, 0, 4)), r"pixels must be .* got \[2, 3, 0, 4\]"),
    "pixels too few": (body(pixels=torch.zeros(1, 3, 4, 4)), "pixels must be a tensor of 4 dimensions with 2 rows"),
    "seeds too few": (body(seeds=torch.tensor([1])), r"seeds must be a tensor of 1 dimensions with 2 rows, got \[1\]"),
    "seeds float": (body(seeds=torch.zeros(2)), "seeds must be int64, got float32"),
}


@pytest.mark.parametrize(("sent", "says"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_body_is_a_400_that_says_what_is_wrong(sent: bytes, says: str) -> None:
    with pytest.raises(WireError, match=says):
        decode_request(sent)
    with served(Brightness()) as server:
        status, text = post(server, sent)
    assert status == 400
    assert re.search(says, text)


@hypothesis.given(st.integers(0, 500), st.binary(min_size=1, max_size=4))
def test_whatever_a_body_holds_it_is_read_or_refused(place: int, patch: bytes) -> None:
    good = encode_request(PIXELS)
    at = place % len(good)
    try:
        decode_request(good[:at] + patch + good[at + len(patch) :])
    except WireError as error:
        assert str(error)  # noqa: PT017  # any of many messages, or none


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"version": 1}, "of format version 1, not 2"),
        ({"input_kind": "sound"}, "not the description of a reward"),
        ({"input_kind": "latent"}, "not the description of a reward"),  # without a space
        ({"batch_size": 0}, "not the description of a reward"),
        ({"batch_size": "many"}, "not the description of a reward"),
        ({"colour": "red"}, "not the description of a reward: .*colour"),
        ({"input_kind": "latent", "trained_on": {"latent_space": 4}}, "not the description of a reward"),
        ({"input_kind": "latent", "trained_on": {"text_length": 4}}, "not the description of a reward: .*latent_space"),
        ({"trained_on": {"latent_space": "vae4"}}, "not the description of a reward"),  # of a pixel reward
    ],
)
def test_a_description_is_read_back_and_anything_else_is_refused(changes: dict[str, object], says: str) -> None:
    assert decode_description(PIXEL_REWARD.encode()) == PIXEL_REWARD
    with pytest.raises(WireError, match=says):
        decode_description(json.dumps({**json.loads(PIXEL_REWARD.encode()), **changes}).encode())


def test_scores_are_those_of_the_reward_itself() -> None:
    for reward, batch in ((Brightness(), PIXELS), (SeedEcho(), PIXELS), (LatentNorm(nan_every=2), LATENTS)):
        with served(reward) as server:
            client = HTTPReward(url=server.url)
            assert (client.name, client.input_kind) == (reward.name, reward.input_kind)
            assert (client.latent_space, client.batch_size) == (reward.latent_space, reward.batch_size)
            space = reward.latent_space
            assert preflight(RewardSpec(name="http", options={"url": server.url})) == (
                None if space is None else TrainedOn(latent_space=space)
            )
            direct = torch.cat([reward(decode_request(encode_request(one))) for one in halves(batch, reward)])
            assert torch.equal(client(batch).nan_to_num(9.0), direct.nan_to_num(9.0))


def test_a_served_reward_is_held_to_its_training_as_if_it_were_here() -> None:
    trained = TrainedOn(latent_space=TINY_SPACE, text_length=28, image_size=64, bucket_step=16, max_aspect=2.0)
    source = LatentSource(latent_space=TINY_SPACE, text_length=33, max_sequence_length=19, key="--tokens")
    with served(LatentNorm(), trained_on=trained) as server:
        spec = RewardSpec(name="http", options={"url": server.url})
        assert preflight(spec) == trained
        assert check_rewards([spec], [replace(source, text_length=28)], "cpu") == {"http": trained}
        with pytest.raises(ConfigError, match=r"'http' was trained on texts of 28 tokens, but gets 33 .*tokens to 14"):
            check_rewards([spec], [source], "cpu")


def halves(batch: RewardInput, reward: Reward) -> list[RewardInput]:
    """The batch in parts of the reward's batch_size, as a server hands it on."""
    rows = torch.arange(len(batch.prompts)).split(reward.batch_size)
    return [batch.take(part.tolist()) for part in rows]


def test_a_batch_of_the_other_kind_is_not_even_sent() -> None:
    server = Scripted(DESCRIBED)
    client = HTTPReward(url=server.url)
    with pytest.raises(ValueError, match="bright scores images: the batch must hold pixels"):
        client(LATENTS)
    assert server.asked == ["GET /reward"]


class Picky(Brightness):
    """Refuses every batch."""

    def __call__(self, batch: RewardInput) -> torch.Tensor:
        raise ValueError("prompt 'a cat' is not\nof my world")


def test_a_refusal_of_the_reward_is_the_clients_valueerror() -> None:
    with served(Picky()) as server:
        assert post(server, encode_request(PIXELS))[0] == 422
        client = HTTPReward(url=server.url)
        with pytest.raises(ValueError, match="prompt 'a cat' is not of my world") as caught:
            client(PIXELS)
        assert not isinstance(caught.value, UserError)


@pytest.mark.parametrize(
    ("reward", "says"),
    [
        (Broken(), "RuntimeError: the judge has left the room; the server's own output has the trace"),
        (
            WrongShape(),
            r"it answered 500 reward 'wrong_shape' must return one score per sample, \[2\], got \[\]",
        ),
    ],
)
def test_a_reward_that_fails_is_an_error_with_its_traceback_at_the_server_and_not_tried_again(
    reward: Reward, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    with served(reward) as server:
        client = HTTPReward(url=server.url)
        with pytest.raises(RewardServerError, match=says):
            client(PIXELS)
        assert len([one for one in caplog.records if one.exc_info]) == 1
        assert post(server, b"")[0] == 400  # it goes on


def test_a_server_that_is_not_there_is_named_with_what_to_do() -> None:
    port = free_port()
    says = (
        rf"reward server http://127\.0\.0\.1:{port}: GET /reward failed, tried 3 times in \d\.\d s: .*Connection "
        "refused. Start it with flowrl reward serve"
    )
    options = {"url": f"http://127.0.0.1:{port}/", "retries": 2}
    with pytest.raises(RewardServerError, match=says):
        HTTPReward(**options)
    with pytest.raises(RewardServerError, match=says):
        preflight(RewardSpec(name="http", options=options))


def test_what_may_pass_is_tried_again() -> None:
    answer = whole(200, encode_scores(torch.tensor([1.0, 2.0, 3.0])))
    cut = (200, answer[1], 20)
    server = Scripted(whole(503, b"loading"), DESCRIBED, whole(502, b""), whole(504, b""), cut, answer)
    client = HTTPReward(url=server.url, retries=3)
    assert client(PIXELS).tolist() == [1.0, 2.0, 3.0]
    assert server.asked == ["GET /reward"] * 2 + ["POST /score"] * 4


def test_tries_have_an_end_that_says_what_was_answered() -> None:
    server = Scripted(whole(503, b"this server is\nstopping"))
    with pytest.raises(RewardServerError, match=r"tried 3 times in .* it answered 503 this server is stopping"):
        HTTPReward(url=server.url, retries=2)
    assert len(server.asked) == 3


def test_each_wait_is_twice_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("rewards.http.client._FIRST_WAIT_S", 0.5)
    monkeypatch.setattr(time, "sleep", waits.append)
    server = Scripted(whole(503, b""))
    with pytest.raises(RewardServerError, match="tried 5 times"):
        HTTPReward(url=server.url, retries=4)
    assert waits == [0.5, 1.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (whole(400, b"bad"), "it answered 400 bad$"),
        (
            whole(404, b"nothing here"),
            "it answered 404 nothing here; is this the url that flowrl reward serve printed?",
        ),
        (whole(413, b"too large"), "it answered 413 too large; lower batch_size, or raise --max-mib"),
        (whole(302, b""), "it answered 302"),  # a token follows no redirection
        (whole(200, b"<html>"), "the answer is not JSON"),
        (whole(200, b"{}"), "the answer is not the description of a reward"),
        (whole(200, b"x" * (16 * 2**20 + 1)), "an answer without end"),
    ],
    ids=["malformed", "elsewhere", "large", "moved", "page", "object", "endless"],
)
def test_what_will_not_pass_is_tried_once(answer: tuple[int, bytes, int], says: str) -> None:
    server = Scripted(answer)
    with pytest.raises(RewardServerError, match=says):
        HTTPReward(url=server.url)
    assert server.asked == ["GET /reward"]


def test_an_answer_with_the_wrong_number_of_scores_is_an_error() -> None:
    server = Scripted(DESCRIBED, whole(200, encode_scores(torch.zeros(2))))
    client = HTTPReward(url=server.url)
    with pytest.raises(RewardServerError, match=r"POST /score: wrong answer: scores must be .* 3 rows"):
        client(PIXELS)


class Slow(Brightness):
    """Takes its time, and knows how many calls are under way."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.under_way = 0
        self.most = 0
        self.calls = 0
        self.began = threading.Event()

    def __call__(self, batch: RewardInput) -> torch.Tensor:
        self.under_way += 1
        self.calls += 1
        self.most = max(self.most, self.under_way)
        self.began.set()
        time.sleep(self.seconds)
        self.under_way -= 1
        return super().__call__(batch)


def test_an_answer_that_does_not_come_in_time_is_not_asked_for_again() -> None:
    reward = Slow(0.5)
    with served(reward) as server:
        client = HTTPReward(url=server.url, timeout_s=0.2)
        with pytest.raises(RewardServerError, match=r"POST /score: no answer within timeout_s = 0\.2; raise it"):
            client(PIXELS)
    assert reward.calls == 2  # the parts of the one batch


def together(server: RewardServer, count: int) -> list[tuple[int, str]]:
    """The answers to several requests that are sent at the same time."""
    answers: list[tuple[int, str]] = []
    sent = encode_request(PIXELS)
    threads = [threading.Thread(target=lambda: answers.append(post(server, sent))) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_batches_are_scored_one_at_a_time() -> None:
    reward = Slow(0.02)
    with served(reward) as server:
        assert [status for status, _ in together(server, 4)] == [200] * 4
    assert (reward.most, reward.calls) == (1, 8)


def test_a_server_that_stops_answers_the_batch_at_hand_and_sends_the_others_away() -> None:
    reward = Slow(0.2)
    with served(reward) as server:
        answers: list[tuple[int, str]] = []
        asking = threading.Thread(target=lambda: answers.extend(together(server, 3)))
        asking.start()
        assert reward.began.wait(10)
        time.sleep(0.1)  # the others wait for their turn by now
        server.shutdown()
        server.close()
        asking.join()
    assert sorted(status for status, _ in answers) == [200, 503, 503]


def test_the_token_is_asked_for_and_shown_to_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text(TOKEN + "\n")
    wrong.write_text(TOKEN + "x")
    monkeypatch.setenv("REWARD_TOKEN", TOKEN)
    with served(Brightness(), token=TOKEN) as server:
        assert post(server, encode_request(PIXELS))[0] == 401
        assert post(server, encode_request(PIXELS), Authorization=TOKEN)[0] == 401
        assert post(server, encode_request(PIXELS), Authorization=f"Bearer {TOKEN}\u00e9")[0] == 401
        for options in ({"token_file": str(right)}, {"token_env": "REWARD_TOKEN"}):
            client = HTTPReward(url=server.url, **options)  # type: ignore[arg-type]
            assert client(PIXELS).shape == (3,)
            assert TOKEN not in repr(client)
        says = []
        for options in ({}, {"token_file": str(wrong)}):
            with pytest.raises(RewardServerError, match=r"it answered 401 .*; give the server's token") as caught:
                HTTPReward(url=server.url, **options)  # type: ignore[arg-type]
            says.append(str(caught.value))
        with socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=10) as plain:
            plain.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            assert b"200 OK" in plain.recv(1000)
    assert TOKEN not in caplog.text + "".join(says)


@pytest.mark.parametrize("text", ["", "\n", "two words", "t\u00f6ken", "bad\x07bell"])
def test_a_token_is_one_word_and_what_is_none_is_not_repeated(text: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(text, encoding="utf-8")
    for ask in (lambda: HTTPReward(url="http://localhost:1", token_file=str(file)), lambda: read_or_make_token(file)):
        with pytest.raises(TokenError, match=r"the token file .* must hold a token, one word of ASCII") as caught:
            ask()
        assert not text.strip() or text not in str(caught.value)


def test_a_token_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "token"
    token = read_or_make_token(file)
    assert len(token) >= 40
    assert read_or_make_token(file) == token
    assert file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(TokenError, match=r"the token file .* cannot be made"):
        read_or_make_token(tmp_path / "no folder" / "token")
    with pytest.raises(TokenError, match="the environment variable NOT_SET must hold a token"):
        HTTPReward(url="http://localhost:1", token_env="NOT_SET")


def test_other_machines_need_a_token() -> None:
    for host in ("0.0.0.0", "some.host"):
        with pytest.raises(UserError, match=f"--host {re.escape(host)} can be reached .* add --token-file"):
            RewardServer(Brightness(), host=host)
    with served(Brightness(), host="0.0.0.0", token=TOKEN) as server:
        assert server.url.startswith(f"http://{socket.gethostname()}:")
    with served(Brightness(), host="localhost") as server:
        says = r"cannot listen on 127\.0\.0\.1:\d+: .*in use; choose another --port"
        port = server.server_address[1]
        with pytest.raises(UserError, match=says):
            RewardServer(Brightness(), port=port)


@pytest.mark.parametrize("url", ["127.0.0.1:8700", "ftp://host", "http://", "http://me:secret@host", "http://host?a=b"])
def test_an_url_is_that_of_a_server_and_no_place_for_secrets(url: str) -> None:
    with pytest.raises(RewardServerError, match="url must be that of a reward server") as caught:
        HTTPReward(url=url)
    assert "secret" not in str(caught.value)


def test_a_proxy_of_the_environment_gets_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with served(Brightness()) as server:
        assert HTTPReward(url=server.url, retries=0).name == "brightness"


def test_a_request_has_a_largest_size() -> None:
    with served(Brightness(), max_bytes=700) as server:
        client = HTTPReward(url=server.url)
        with pytest.raises(
            RewardServerError, match=r"a batch of 3 is .* bytes, the server takes 700; lower batch_size"
        ):
            client(PIXELS)
        status, text = post(server, b"x" * 2_000)  # so few that they are sent before the answer comes
        assert (status, text) == (413, "2000 bytes are more than the 700 that this server takes")


def test_only_what_is_meant_for_it_is_read() -> None:
    with served(Brightness()) as server:
        good = encode_request(PIXELS)
        assert post(server, good)[0] == 200
        assert post(server, good, path="/elsewhere")[0] == 404
        assert post(server, good, **{"Content-Type": "text/plain"})[0] == 415
        assert post(server, good, **{"Content-Length": "-5"})[0] == 411
        assert post(server, good, **{"Content-Length": "9" * 30})[0] == 411


def test_serve_prints_where_it_is_and_ends_in_good_order(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flowrl", "reward", "serve", "oracle", "part=shape", "--port", "0"]
    with subprocess.Popen(
        [*command, "--token-file", str(tmp_path / "token")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as serving:
        assert serving.stdout is not None
        lines = [serving.stdout.readline() for _ in range(5)]
        config = re.search(r"\{name: http, options: \{url: \"(.*)\", token_file: \"(.*)\"\}\}", "".join(lines))
        assert config is not None, lines
        assert HTTPReward(url=config[1], token_file=config[2]).name == "oracle_shape"
        serving.send_signal(signal.SIGTERM)
        rest, errors = serving.communicate(timeout=30)
    assert serving.returncode == 0
    assert rest == "stopping after the batch at hand\n"
    assert errors == ""
