"""Judging over HTTP: what is asked, what becomes of bad answers, that nothing is lost, and that no key is shown."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from flowrl import cli
from flowrl.judge.rubric import SYSTEM
from flowrl.samples import write_sheet
from tests.judge_server import KEY, SCORES, Asked, JudgeServer, Reply, answer, error, good, running_judge

OUT = Path("judged")


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    """A judge that answers well until it is told otherwise."""
    with running_judge() as running:
        yield running


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory, a key, and tries that follow each other at once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOWRL_JUDGE_KEY", KEY)
    monkeypatch.setattr("flowrl.judge.waiting.FIRST_WAIT_S", 0.01)


def save_images(number: int) -> list[str]:
    """Write images that differ, and a prompt for each; what to judge them takes."""
    Path("images").mkdir()
    for place in range(number):
        Image.new("RGB", (6, 4), (place, 2 * place, 99)).save(f"images/{place}.png")
    Path("prompts.txt").write_text("".join(f"prompt {place}\n" for place in range(number)), encoding="utf-8")
    return ["images", "--prompts", "prompts.txt"]


def judge(server: JudgeServer | str, *words: str, code: int = 0) -> list[dict[str, Any]]:
    """Run the command; the lines of its results."""
    url = server if isinstance(server, str) else server.url
    assert cli.main(["judge", *words, "--out", str(OUT), "--endpoint", url, "--model", "eye"]) == code
    lines = OUT / "results.jsonl"
    return [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()] if lines.exists() else []


def summary() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((OUT / "summary.json").read_text(encoding="utf-8"))
    return found


def test_each_image_is_asked_about_by_itself_with_its_prompt_and_its_pixels(server: JudgeServer) -> None:
    rows = judge(server, *save_images(3), "--option", "temperature=0", "--concurrency", "1")
    assert [row["file"] for row in rows] == ["images/0.png", "images/1.png", "images/2.png"]
    assert [row["prompt"] for row in rows] == ["prompt 0", "prompt 1", "prompt 2"]
    assert all(row["scores"] == SCORES and row["outcome"] == "scored" for row in rows)
    assert [one.prompt for one in server.asked] == ["prompt 0", "prompt 1", "prompt 2"]
    assert [one.image.getpixel((0, 0)) for one in server.asked] == [(0, 0, 99), (1, 2, 99), (2, 4, 99)]
    first = server.asked[0]
    assert (first.path, first.authorization) == ("/v1/chat/completions", f"Bearer {KEY}")
    assert first.body.keys() == {"model", "messages", "temperature"}
    assert (first.body["model"], first.body["temperature"]) == ("eye", 0)
    assert first.body["messages"][0] == {"role": "system", "content": SYSTEM}


def test_the_summary_has_means_and_errors_and_what_was_used(
    server: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.behave = lambda asked: answer(json.dumps({**SCORES, "realism": 4 + int(asked.prompt[-1])}))
    judge(server, *save_images(3), "--price-in", "2", "--price-out", "10", "--yes")
    found = summary()
    assert found["dimensions"]["realism"]["mean"] == 5.0
    assert found["dimensions"]["realism"]["standard_error"] == pytest.approx(1 / 3**0.5)
    assert found["dimensions"]["overall"] == {"mean": 6.5, "standard_error": 0.0, "images": 3, "prompts": 3}
    assert found["outcomes"] == {"scored": 3}
    assert found["tokens_of_this_start"] == {"answers": 3, "input": 3000, "output": 300}
    assert found["cost_of_this_start"] == pytest.approx((3000 * 2 + 300 * 10) / 1e6)
    assert found["setting"]["endpoint"] == server.url
    out, err = capsys.readouterr()
    assert "realism            5.00 +- 0.58" in out
    assert "3 requests to send" in err


def test_a_second_start_asks_nothing_and_writes_the_same(server: JudgeServer) -> None:
    images = save_images(4)
    first = judge(server, *images)
    (OUT / "results.jsonl").unlink()
    assert judge(server, *images, "--price-in", "5") == first  # and needs no --yes, as nothing is bought
    assert len(server.asked) == 4
    assert summary()["tokens_of_this_start"]["answers"] == 0
    assert summary()["tokens"] == {"answers": 4, "input": 4000, "output": 400}


def test_equal_images_of_a_prompt_are_asked_about_once(server: JudgeServer) -> None:
    save_images(1)
    for place in range(1, 6):
        Path(f"images/{place}.png").write_bytes(Path("images/0.png").read_bytes())
    server.behave = lambda asked: good(wait_s=0.05)
    assert len(judge(server, "images", "--prompt", "a cat")) == 6
    assert len(server.asked) == 1


def test_what_has_a_price_is_not_bought_without_a_yes(server: JudgeServer, capsys: pytest.CaptureFixture[str]) -> None:
    judge(server, *save_images(2), "--price-in", "1000", "--image-tokens", "600", code=2)
    assert server.asked == []
    said = capsys.readouterr().err
    assert "2 requests to send" in said
    assert "cost about " in said
    assert "add --yes" in said


def test_a_malformed_answer_is_asked_for_again_and_then_stands(server: JudgeServer) -> None:
    server.behave = lambda asked: answer("8/10") if asked.prompt == "prompt 0" else good()
    images = save_images(2)
    rows = judge(server, *images, "--attempts", "3", code=1)
    assert [row["outcome"] for row in rows] == ["malformed", "scored"]
    assert rows[0]["scores"] is None
    assert "not JSON" in rows[0]["problem"]
    assert len(server.asked) == 4
    assert judge(server, *images, "--attempts", "3", code=1) == rows
    assert len(server.asked) == 4
    server.behave = lambda asked: good()
    assert judge(server, *images, "--attempts", "4")[0]["outcome"] == "scored"
    assert len(server.asked) == 5
    assert summary()["dimensions"]["overall"]["images"] == 2


@pytest.mark.parametrize(
    "reply",
    [
        answer(None, refusal="I will not judge this."),
        answer("I'm sorry, I can't help with that."),
        answer("", finish="content_filter"),
        error(400, "rejected by the safety system", "content_policy_violation"),
    ],
)
def test_a_refusal_is_recorded_as_one_and_never_as_a_score(server: JudgeServer, reply: Reply) -> None:
    server.script(reply)
    rows = judge(server, *save_images(1), "--attempts", "2", code=1)
    assert [(row["outcome"], row["scores"]) for row in rows] == [("refused", None)]
    assert len(server.asked) == 2
    assert summary()["dimensions"] == {}


@pytest.mark.parametrize(
    "bad",
    [
        error(500, "oops"),
        error(503, "starting"),
        error(429, "slow down"),
        Reply(hang_up=True),
        Reply(body=b"<html>login</html>"),
        Reply(body=b'{"error": {"message": "upstream"}}'),
        good(wait_s=7),
        Reply(body=good().body, trickle_s=0.05),
    ],
)
def test_what_may_pass_is_tried_again(server: JudgeServer, bad: Reply) -> None:
    server.script(bad, bad, good())
    rows = judge(server, *save_images(1), "--timeout", "3")
    assert [row["outcome"] for row in rows] == ["scored"]
    assert len(server.asked) == 3


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_429_with_retry_after_holds_all_questions_back_as_long_as_it_says(server: JudgeServer, form: str) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True)  # to whole seconds
    limited = error(429, "slow down", headers={"Retry-After": "1" if form == "seconds" else later})

    def behave(asked: Asked) -> Reply:
        """The second question is under way when the first is told to wait; what follows it must wait as well."""
        while len(server.asked) < 2:
            time.sleep(0.01)
        return limited if asked.number == 0 else good(wait_s=0.3 if asked.number == 1 else 0.0)

    server.behave = behave
    judge(server, *save_images(6), "--concurrency", "2")
    waits = [one.seconds - server.asked[0].seconds for one in server.asked[1:]]
    assert all(1.0 <= wait < 5.0 for wait in waits[1:])
    assert len(server.asked) == 7


def test_an_endpoint_that_asks_for_a_day_ends_the_round(
    server: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script(error(429, "quota", headers={"Retry-After": "86400"}))
    judge(server, *save_images(1), code=2)
    assert "asks to wait 86400 s; start again then" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (error(401, f"Incorrect API key provided: {KEY}"), "FLOWRL_JUDGE_KEY is not the endpoint's"),
        (error(403, "no access"), "may not use the model 'eye'"),
        (error(404, "no such model"), "a model that it has?"),
        (error(429, "no money", "insufficient_quota"), "no credit left"),
        (Reply(status=302, headers={"Location": "http://127.0.0.1:1/"}), "the key is not carried elsewhere"),
    ],
)
def test_what_no_question_would_get_through_ends_at_once_with_advice(
    server: JudgeServer, reply: Reply, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script(reply)
    judge(server, *save_images(5), "--concurrency", "1", "--traceback", code=2)
    assert len(server.asked) == 1
    shown = capsys.readouterr().err
    assert said in shown
    assert KEY not in shown


def test_a_question_that_waits_does_not_hold_up_the_end(
    server: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    wait = error(429, "slow down", headers={"Retry-After": "60"})

    def behave(asked: Asked) -> Reply:
        """The key turns out to be wrong while the first question waits for its next try."""
        while len(server.asked) < 2:
            time.sleep(0.01)
        if asked.number == 0:
            return wait
        time.sleep(0.3)
        return error(401, "wrong key")

    server.behave = behave
    began = time.monotonic()
    judge(server, *save_images(2), "--concurrency", "2", code=2)
    assert time.monotonic() - began < 30
    assert "wrong key" in capsys.readouterr().err


def test_what_was_answered_before_the_key_was_withdrawn_is_kept(server: JudgeServer) -> None:
    images = save_images(6)
    server.script(good(), good(), good(), error(401, "revoked"))
    assert judge(server, *images, "--concurrency", "1", code=2) == []
    server.script(good())
    assert len(judge(server, *images)) == 6
    assert len(server.asked) == 4 + 3


def test_a_request_that_is_turned_down_is_its_images_own_affair_once_another_passed(server: JudgeServer) -> None:
    server.behave = lambda asked: good() if asked.prompt == "prompt 0" else error(400, "image too small")
    images = save_images(6)
    rows = judge(server, *images, "--concurrency", "1", code=1)
    assert [row["outcome"] for row in rows] == ["scored"] + ["rejected"] * 5
    assert "image too small" in rows[1]["problem"]
    assert len(server.asked) == 6


def test_an_endpoint_that_turns_every_request_down_is_soon_left_alone(
    server: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script(error(400, "images are not supported"))
    judge(server, *save_images(20), "--concurrency", "1", code=2)
    assert len(server.asked) == 3
    assert "images are not supported" in capsys.readouterr().err


def test_one_image_without_an_answer_does_not_end_the_others(server: JudgeServer) -> None:
    server.behave = lambda asked: error(500, "oops") if asked.prompt == "prompt 1" else good()
    images = save_images(4)
    rows = judge(server, *images, "--retries", "1", "--concurrency", "1", code=1)
    assert [row["outcome"] for row in rows] == ["scored", "unanswered", "scored", "scored"]
    assert "tried 2 times: it answered 500 oops" in rows[1]["problem"]
    server.behave = lambda asked: good()
    assert [row["outcome"] for row in judge(server, *images)] == ["scored"] * 4
    assert len(server.asked) == 3 + 2 + 1


def test_a_server_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with running_judge() as gone:
        pass
    judge(gone, *save_images(9), "--retries", "1", code=2)
    said = capsys.readouterr().err
    assert gone.url in said
    assert "refused" in said
    assert "see to the endpoint" in said


def test_questions_are_under_way_together_and_results_keep_the_order(server: JudgeServer) -> None:
    server.behave = lambda asked: good(wait_s=0.3 if asked.prompt == "prompt 0" else 0.05)
    rows = judge(server, *save_images(12), "--concurrency", "4")
    assert [row["prompt"] for row in rows] == [f"prompt {place}" for place in range(12)]
    assert server.most_at_once == 4


def test_the_key_is_nowhere_even_where_the_endpoint_sends_it_back(
    server: JudgeServer, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in KEY)
    replies = {
        "prompt 0": good(rationale=f"you sent {KEY}"),
        "prompt 1": answer(f"Bearer {KEY} is no JSON"),
        "prompt 2": answer(None, refusal=f"not with {KEY}"),
        "prompt 3": error(500, f"failed for {KEY}"),
        "prompt 4": Reply(status=500, body=f"plain {KEY}".encode()),
        "prompt 5": error(400, f"bad request by {KEY}"),
        "prompt 6": answer(json.dumps(SCORES)[:-1] + f', "rationale": "{escaped}"}}'),
        "prompt 7": Reply(body=f"{KEY}".encode()),
    }
    server.behave = lambda asked: replies[asked.prompt]
    rows = judge(server, *save_images(8), "--retries", "0", "--concurrency", "1", "--traceback", code=1)
    assert [row["outcome"] for row in rows[:3]] == ["scored", "malformed", "refused"]
    assert rows[0]["rationale"] == "you sent [key]"
    assert rows[6]["rationale"] == "[key]"
    files = [file for file in Path().rglob("*") if file.is_file()]
    assert [file for file in files if KEY.encode() in file.read_bytes()] == []
    out, err = capsys.readouterr()
    assert KEY not in out + err + caplog.text
    assert len([file for file in files if "cache" in file.parts]) >= 3


def test_a_key_among_the_options_is_refused(server: JudgeServer, capsys: pytest.CaptureFixture[str]) -> None:
    judge(server, *save_images(1), "--option", f"api_key={KEY}", code=2)
    said = capsys.readouterr().err
    assert "leave it out" in said
    assert KEY not in said


def test_the_samples_of_a_run_are_judged_step_by_step(server: JudgeServer) -> None:
    texts = ["a large red circle on sand", "a small blue square on snow"]
    for step in (0, 10):
        images = torch.randint(0, 256, (4, 3, 64, 64), generator=torch.Generator().manual_seed(step)).byte()
        write_sheet(Path("runs/a/samples"), step, images, texts, {})
    rows = judge(server, "runs/a")
    assert [(row["step"], row["prompt"]) for row in rows] == [
        (step, t) for step in (0, 10) for t in texts for _ in "12"
    ]
    assert rows[5]["file"] == "runs/a/samples/step_000010.png#0.1"
    sent = next(one for one in server.asked if one.number == 0)
    assert sent.image.size == (64, 64)
    groups = summary()["groups"]
    assert [(group["run"], group["step"], group["outcomes"]) for group in groups] == [
        ("runs/a", 0, {"scored": 4}),
        ("runs/a", 10, {"scored": 4}),
    ]
    assert cli.main(["judge", "runs/a", "--judge", "oracle", "--step", "10", "--out", "true"]) == 0
    assert len(server.asked) == 8
    lines = [json.loads(line) for line in Path("true/results.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == [10] * 4
    assert all(1.0 <= line["scores"]["overall"] <= 10.0 for line in lines)


def test_an_image_that_cannot_be_read_is_named_before_anything_is_asked(
    server: JudgeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    images = save_images(3)
    Path("images/1.png").write_bytes(Path("images/1.png").read_bytes()[:-30])
    judge(server, *images, code=2)
    assert "images/1.png" in capsys.readouterr().err
    assert server.asked == []


def test_two_processes_do_not_share_a_cache(server: JudgeServer, capsys: pytest.CaptureFixture[str]) -> None:
    images = save_images(1)
    hold = "import sys; from pathlib import Path; from flowrl.base.folder_lock import take_lock\n"
    hold += "lock = take_lock(Path('cache'), 'k'); print('held', flush=True); sys.stdin.read()"
    Path("cache").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", hold]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        judge(server, *images, "--cache", "cache", code=2)
        other.communicate()
    assert "--cache=cache must be written by one process" in capsys.readouterr().err
    assert server.asked == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["images"], "give --prompts FILE, or --prompt TEXT"),
        (["images", "--prompt", " "], "its prompt is empty"),
        (["images", "--prompt", "a", "--step", "3"], "--step is of runs"),
        (["images", "--prompt", "a", "--concurrency", "0"], "--concurrency must be at least 1, got 0"),
        (["images", "--prompt", "a", "--timeout", "nan"], "--timeout must be above 0"),
        (["images", "--prompt", "a", "--option", "messages=[]"], "is set by the protocol"),
        (["images", "--prompt", "a", "--judge", "oracle"], "leave out --endpoint and --model"),
        (["nothing", "--prompt", "a"], "nothing: no such file or folder"),
    ],
)
def test_an_order_that_cannot_be_followed_is_refused_before_anything_is_asked(
    server: JudgeServer, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save_images(1)
    judge(server, *words, code=2)
    assert said in capsys.readouterr().err
    assert server.asked == []


@pytest.mark.parametrize("url", ["ftp://host/v1", "http://user:pw@host/v1", "http://host/v1?key=a", "host"])
def test_an_endpoint_that_is_none_is_refused_without_repeating_it(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    judge(url, *save_images(1), code=2)
    said = capsys.readouterr().err
    assert "--endpoint must be the URL" in said
    assert url not in said


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_a_start_after_any_end_goes_on_where_it_was(server: JudgeServer, ending: signal.Signals) -> None:
    images = save_images(30)
    server.behave = lambda asked: good(wait_s=0.15)
    words = ["judge", *images, "--out", str(OUT), "--endpoint", server.url, "--model", "eye", "--concurrency", "3"]
    command = [sys.executable, "-m", "flowrl", *words]
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": root}, stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 120
        while server.sent < 8 and time.monotonic() < end:
            time.sleep(0.02)
        process.send_signal(ending)
        assert process.wait(timeout=60) == (-9 if ending == signal.SIGKILL else 128 + 15)
    asked = len(server.asked)
    kept = list((OUT / "cache").glob("*/*.json"))
    assert asked < 30
    lost = asked - len(kept)
    assert lost == 0 if ending == signal.SIGTERM else lost <= 3 + 1  # under way, or come and not yet written
    assert not (OUT / "results.jsonl").exists()
    rows = judge(server, *images)
    assert [row["outcome"] for row in rows] == ["scored"] * 30
    assert len(server.asked) == asked + 30 - len(kept)
