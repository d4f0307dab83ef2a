"""What counts as a judge's answer, how long to wait for one, and how sure its means are."""

from __future__ import annotations

import json
import math
import statistics
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from flowrl.base.errors import UserError
from flowrl.judge.answer import Answer, MalformedAnswer, judged, read_completion, read_scores
from flowrl.judge.cache import AnswerCache, CacheError
from flowrl.judge.estimate import Prices, Question, estimate
from flowrl.judge.judgement import Tokens
from flowrl.judge.oracle import OracleJudge
from flowrl.judge.results import mean_over_prompts
from flowrl.judge.rubric import DIMENSIONS, SYSTEM, question_key, user_text
from flowrl.judge.secret import Secret
from flowrl.judge.waiting import FIRST_WAIT_S, LONGEST_WAIT_S, backoff, retry_after
from flowrl.pocket import oracle
from flowrl.pocket.render import render
from flowrl.pocket.scene import Scene
from tests.judge_server import KEY, SCORES

GOOD = json.dumps({**SCORES, "rationale": "sharp"})
IMAGE = torch.arange(3 * 4 * 4, dtype=torch.uint8).reshape(3, 4, 4)
SCENE = "a large red circle on sand"


def changed(**values: object) -> str:
    return json.dumps({**SCORES, **values})


@pytest.mark.parametrize("text", [GOOD, f"\n {GOOD}\n", f"```json\n{GOOD}\n```", f"```\n{GOOD}\n```"])
def test_the_scores_of_a_good_answer_are_read_in_the_order_of_the_dimensions(text: str) -> None:
    assert read_scores(text) == ((8.0, 7.0, 6.0, 5.0, 6.5), "sharp")


def test_a_rationale_may_be_left_out() -> None:
    assert read_scores(json.dumps(SCORES)) == ((8.0, 7.0, 6.0, 5.0, 6.5), "")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "not JSON"),
        ("Here you go: " + GOOD, "not JSON"),
        (GOOD + GOOD, "not JSON"),
        (f"[{GOOD}]", "must be a JSON object, is list"),
        ("[" * 100_000, "not JSON"),
        ('{"overall": 7}', "lacks prompt_alignment, visual_quality, realism, detail_richness"),
        (changed(beauty=3), "unknown keys: beauty"),
        (GOOD[:-1] + ', "overall": 9}', "has overall twice"),
        (changed(realism=0), r"realism must lie within 1\.\.10, is 0"),
        (changed(overall=10.01), r"overall must lie within 1\.\.10"),
        (changed(overall=math.nan), "NaN, which is no number"),
        (changed(overall=math.inf), "Infinity, which is no number"),
        (GOOD.replace("6.5", "1e999"), r"overall must lie within 1\.\.10, is inf"),
        (GOOD.replace("6.5", "9" * 5000), "overall|not JSON"),
        (changed(realism=True), "realism must be a number, is True"),
        (changed(realism="7"), "realism must be a number, is '7'"),
        (changed(realism=None), "realism must be a number, is None"),
        (changed(realism=7.5), r"realism must be a whole number, is 7\.5"),
        (changed(rationale=["a"]), "rationale must be text"),
    ],
)
def test_what_is_not_exactly_an_answer_is_malformed(text: str, fault: str) -> None:
    with pytest.raises(MalformedAnswer, match=fault):
        read_scores(text)


@pytest.mark.parametrize(
    ("given", "outcome"),
    [
        (Answer(text=GOOD), "scored"),
        (Answer(text=GOOD, refusal="I will not"), "refused"),
        (Answer(text="", finish="content_filter"), "refused"),
        (Answer(text="I'm sorry, but I can't help with that."), "refused"),
        (Answer(text="I cannot assess this image."), "refused"),
        (Answer(text=GOOD[:40], finish="length"), "malformed"),
        (Answer(text="8 out of 10"), "malformed"),
        (Answer(text=""), "malformed"),
    ],
)
def test_scores_come_with_the_outcome_scored_alone(given: Answer, outcome: str) -> None:
    said = judged(given)
    assert said.outcome == outcome
    assert bool(said.scores) == (outcome == "scored") == (not said.problem)


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{"message": {"content": 7}}]}', b"\xff"]
)
def test_a_body_that_is_no_chat_completion_is_told_apart(body: bytes) -> None:
    with pytest.raises(MalformedAnswer, match=r"no chat completion|not JSON"):
        read_completion(body)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("7", 7.0),
        (" 0.25 ", 0.25),
        ("Wed, 21 Oct 2015 07:28:30 GMT", 30.0),
        ("Wed, 21 Oct 2015 07:27:00 GMT", 0.0),
        ("-5", None),
        ("nan", None),
        ("soon", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str | None, seconds: float | None) -> None:
    assert retry_after(header, now=datetime(2015, 10, 21, 7, 28, 0, tzinfo=UTC)) == seconds


def test_waits_double_up_to_a_limit_and_differ_between_questions() -> None:
    waits = [backoff(tried, "a") for tried in range(1, 12)]
    wholes = [min(FIRST_WAIT_S * 2**tried, LONGEST_WAIT_S) for tried in range(11)]
    assert all(whole / 2 <= wait <= whole for wait, whole in zip(waits, wholes, strict=True))
    assert waits == [backoff(tried, "a") for tried in range(1, 12)]
    assert backoff(1, "a") != backoff(1, "b")


def test_a_question_is_known_by_pixels_prompt_model_and_options() -> None:
    key = question_key(IMAGE, "a cat", "m", {})
    assert key == question_key(IMAGE.permute(0, 2, 1).contiguous().permute(0, 2, 1), "a cat", "m", {})
    others = [
        question_key(IMAGE + 1, "a cat", "m", {}),
        question_key(IMAGE.reshape(3, 2, 8), "a cat", "m", {}),
        question_key(IMAGE, "a dog", "m", {}),
        question_key(IMAGE, "a cat", "n", {}),
        question_key(IMAGE, "a cat", "m", {"temperature": 0}),
    ]
    assert len({key, *others}) == 6


def test_a_prompt_with_braces_stands_in_the_question_as_it_is() -> None:
    assert "<prompt>\na {prompt} {0}\n</prompt>" in user_text("a {prompt} {0}")


def test_a_damaged_answer_is_named_and_not_paid_for_again(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path)
    cache.write("ab12", model="m", prompt="p", answers=(Answer(text=GOOD),))
    assert cache.read("ab12") == (Answer(text=GOOD),)
    (tmp_path / "ab" / "ab34.json").write_bytes((tmp_path / "ab" / "ab12.json").read_bytes())
    with pytest.raises(CacheError, match=r"ab34\.json: cannot be read .*another question"):
        cache.read("ab34")
    (tmp_path / "ab" / "ab12.json").write_text("{", encoding="utf-8")
    with pytest.raises(CacheError, match=r"ab12\.json: cannot be read .* delete it"):
        cache.read("ab12")


def test_the_estimate_counts_text_images_and_answers() -> None:
    text = math.ceil(len((SYSTEM + user_text("a cat")).encode()) / 4)
    asked = [Question(height=56, width=57, prompt="a cat")] * 2
    assert estimate(asked, image_tokens=None, answer_tokens=9) == Tokens(answers=2, input=2 * (text + 6), output=18)
    assert estimate(asked, image_tokens=500, answer_tokens=0).input == 2 * (text + 500)
    assert Prices(input=2.0, output=10.0).cost(Tokens(input=500_000, output=100_000)) == 2.0


def test_the_standard_error_is_the_usual_one_where_every_image_has_a_prompt_of_its_own() -> None:
    values = [7.0, 8.0, 4.0, 9.5]
    found = mean_over_prompts(values, ["a", "b", "c", "d"])
    assert found.mean == pytest.approx(7.125)
    assert found.standard_error == pytest.approx(statistics.stdev(values) / 2)


def test_four_equal_images_of_a_prompt_say_no_more_than_one() -> None:
    values = [7.0, 8.0, 4.0]
    repeated = mean_over_prompts([value for value in values for _ in range(4)], [p for p in "abc" for _ in range(4)])
    once = mean_over_prompts(values, list("abc"))
    assert repeated.standard_error == pytest.approx(once.standard_error)
    assert (repeated.images, repeated.prompts) == (12, 3)
    assert mean_over_prompts([5.0], ["a"]).standard_error is None


def test_the_oracle_judges_by_its_own_parts_on_the_scale_of_judges() -> None:
    scene = Scene.parse(SCENE)
    image = (render([scene], torch.Generator().manual_seed(0))[0] * 255).round().to(torch.uint8)
    (said,) = OracleJudge().judge([image], [SCENE])
    truth = oracle.score(image[None].float() / 255, [scene])
    parts = [truth.attributes, truth.relation, truth.shape, truth.cleanliness, truth.total]
    assert said.scores == pytest.approx([1 + 9 * float(part[0]) for part in parts])
    assert OracleJudge.dimensions == ("attributes", "relation", "shape", "cleanliness", "overall")
    assert OracleJudge.dimensions[-1] == DIMENSIONS[-1]


def test_the_oracle_gives_no_score_where_the_prompt_is_not_of_its_world() -> None:
    (said,) = OracleJudge().judge([torch.zeros(3, 64, 64, dtype=torch.uint8)], ["a cat"])
    assert (said.outcome, said.scores) == ("rejected", ())


@pytest.mark.parametrize("value", ["two words", "line\nbreak", "k\u00e4se"])
def test_what_can_be_no_key_is_refused_without_showing_it(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", value)
    with pytest.raises(UserError, match="MINE must hold a key") as caught:
        Secret.of_environment("MINE")
    assert value not in str(caught.value)


def test_a_key_does_not_show_where_it_is_printed() -> None:
    secret = Secret(KEY)
    assert KEY not in f"{secret} {secret!r}"
    assert secret.covered(f"Bearer {KEY}!") == "Bearer [key]!"
    assert Secret().covered("ab") == "ab"
