"""From what `flowrl judge` was told to its results."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from flowrl.base.amounts import count
from flowrl.base.errors import UserError
from flowrl.base.folder_lock import make_writable
from flowrl.judge.cache import AnswerCache
from flowrl.judge.connection import EndpointSetting
from flowrl.judge.endpoint import EndpointJudge
from flowrl.judge.estimate import Prices, Question, estimate
from flowrl.judge.judgement import Judge
from flowrl.judge.oracle import OracleJudge
from flowrl.judge.results import RESULTS, Judged, Setting, summarise, table, write_results
from flowrl.judge.rubric import PROTOCOL
from flowrl.judge.subjects import Subject, find_subjects, read_all

_SHOWN_PROBLEMS = 20


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to judge, by whom, and where to write it.

    Example: ``Order(places=(Path("runs/latest"),), out=Path("judged"), endpoint=setting)``
    """

    places: tuple[Path, ...]  # runs, or image files and folders of them
    out: Path  # a folder
    endpoint: EndpointSetting | None = None  # None: the oracle judges
    prompts: Path | None = None
    prompt: str | None = None  # of all images
    steps: tuple[int, ...] = ()  # of the runs; () for all
    cache: Path | None = None  # None: a folder in `out`
    attempts: int = 3
    options: Mapping[str, Any] = field(default_factory=dict)  # further fields of the request
    prices: Prices = field(default_factory=Prices)
    image_tokens: int | None = None  # None: by the size of an image
    answer_tokens: int = 200
    yes: bool = False  # what has a price may be bought


def judge_as_ordered(order: Order) -> int:
    """Judge, write the results, and return the exit code: 1 where an image lacks scores.

    An endpoint's answers are in the cache as they come, so that after any end another start goes on from there and
    writes the same results. Raises UserError before anything is asked where the order is wrong, or where it has a price
    and was not agreed to.
    """
    subjects = find_subjects(order.places, order.prompts, order.prompt, order.steps)
    make_writable(order.out, "--out")
    if order.endpoint is None:
        return _judge(OracleJudge(), subjects, Setting(judge="oracle"), order)
    cache = AnswerCache(order.cache or order.out / "cache")
    try:
        judge = EndpointJudge(order.endpoint, cache, attempts=order.attempts, options=order.options, say=_say)
        _say_what_it_takes(judge, subjects, order)
        setting = Setting(judge=judge.name, endpoint=judge.url, protocol=PROTOCOL, options=order.options)
        return _judge(judge, subjects, setting, order)
    finally:
        cache.close()


def _say_what_it_takes(judge: EndpointJudge, subjects: Sequence[Subject], order: Order) -> None:
    """Say how much is to be asked, and what that costs; raises UserError when it was not agreed to."""
    questions: dict[str, Question] = {}
    kept: set[str] = set()
    images = read_all(subjects)
    for subject in tqdm(subjects, desc="read", unit="image", disable=None, leave=False):
        image = next(images)
        key = judge.key(image, subject.prompt)
        if key in kept or judge.answered(key):
            kept.add(key)
        else:
            questions[key] = Question(height=image.shape[1], width=image.shape[2], prompt=subject.prompt)
    tokens = estimate(questions.values(), image_tokens=order.image_tokens, answer_tokens=order.answer_tokens)
    _say(
        f"{judge.name} at {judge.url}: {count(len(subjects), 'image')}, {count(len(kept), 'answer')} in the cache, "
        f"{count(len(questions), 'request')} to send"
    )
    if not questions:
        return
    most = f" (up to {order.attempts} times that where answers are refused or malformed)" if order.attempts > 1 else ""
    cost = f"cost about {order.prices.cost(tokens):,.2f}" if order.prices else "no price given"
    _say(f"about {tokens.input:,} tokens in, {tokens.output:,} out; {cost}{most}")
    if order.prices and not order.yes:
        raise UserError("this costs money and was not agreed to: nothing was sent", advice="add --yes to go ahead")


def _judge(judge: Judge, subjects: Sequence[Subject], setting: Setting, order: Order) -> int:
    judged: list[Judged] = []
    said = 0
    found = judge.judge(read_all(subjects), [subject.prompt for subject in subjects])
    bar = tqdm(zip(subjects, found, strict=True), desc="judge", total=len(subjects), unit="image", disable=None)
    with closing(found):
        for subject, judgement in bar:
            judged.append(Judged(subject=subject, judgement=judgement))
            if judgement.outcome != "scored":
                said += 1
                if said <= _SHOWN_PROBLEMS:
                    _say(f"{subject.name}: {judgement.problem}")
    if said > _SHOWN_PROBLEMS:
        _say(f"and {said - _SHOWN_PROBLEMS} more")
    summary = summarise(judged, judge.dimensions, setting, order.prices)
    write_results(order.out, judged, judge.dimensions, summary)
    sys.stdout.write(f"{table(summary)}\n" if summary.dimensions else "")
    spent = summary.tokens_of_this_start
    if order.endpoint is not None:
        cost = "" if summary.cost_of_this_start is None else f", cost {summary.cost_of_this_start:,.2f}"
        _say(f"{count(spent.answers, 'answer')} came: {spent.input:,} tokens in, {spent.output:,} out{cost}")
    _say(f"{order.out / RESULTS}: {count(len(judged), 'image')}, {said} without scores")
    return 1 if said else 0


def _say(text: str) -> None:
    tqdm.write(f"flowrl judge: {text}", file=sys.stderr)  # above the bar, where there is one
