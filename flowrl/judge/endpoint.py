"""A judge behind any OpenAI-compatible endpoint: a hosted model, or a local vLLM."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch

from flowrl.judge.answer import Answer, judged
from flowrl.judge.cache import AnswerCache
from flowrl.judge.connection import Connection, EndpointError, EndpointSetting, Rejected, Unanswered
from flowrl.judge.judgement import Judgement, Outcome, Tokens
from flowrl.judge.rubric import DIMENSIONS, question_key, request_body
from flowrl.judge.waiting import Halt, Halted

_AHEAD = 4  # images taken per question under way, so that one slow answer does not hold up the rest
_GIVE_UP = 3  # images in a row without an answer: then it is not the images


class EndpointJudge:
    """Asks an endpoint about each image, as `flowrl.judge.rubric` says; fits `flowrl.judge.judgement.Judge`.

    Every answer is in the cache before anything is made of it. A refusal and a malformed answer are asked for anew
    until there are `attempts` answers to the question, those of earlier calls counted, and then stand. What got no
    answer is not kept, and so is asked for again by the next call. `options` are further fields of the request; `say`
    tells a person why it takes a while to stop.
    """

    dimensions: tuple[str, ...] = DIMENSIONS

    def __init__(
        self,
        setting: EndpointSetting,
        cache: AnswerCache,
        *,
        attempts: int = 3,
        options: Mapping[str, Any] | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.name = setting.model
        self._setting = setting
        self._connection = Connection(setting)
        self._cache = cache
        self._attempts = attempts
        self._options = dict(options or {})
        self._say = say

    @property
    def url(self) -> str:
        """Where it is, before /chat/completions."""
        return self._connection.url

    def key(self, image: torch.Tensor, prompt: str) -> str:
        """What the question about an image [3, H, W] uint8 is called in the cache."""
        return question_key(image, prompt, self._setting.model, self._options)

    def answered(self, key: str) -> bool:
        """Whether the cache has all that a question will ever get: it costs nothing."""
        return self._settled(self._cache.read(key))

    def judge(self, images: Iterable[torch.Tensor], prompts: Iterable[str]) -> Generator[Judgement, None, None]:
        """One judgement per image, in their order; several questions are under way at a time.

        Raises EndpointError when the endpoint takes no question at all, such as for a wrong key, or when several
        images in a row get no answer. Then, and when the iteration is left early, questions that are under way are
        waited for, so that what is paid for is kept; no other is begun.
        """
        round_ = _Round()
        with ThreadPoolExecutor(self._setting.concurrency, thread_name_prefix="judge") as pool:
            pending: deque[Future[Judgement]] = deque()
            try:
                for image, prompt in zip(images, prompts, strict=True):
                    pending.append(pool.submit(self._judge_one, image, prompt, round_))
                    if len(pending) > _AHEAD * self._setting.concurrency:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            except Halted:
                if round_.cause is None:
                    raise
                raise round_.cause from None
            finally:
                round_.halt.call()
                under_way = sum(future.running() for future in pending)
                if under_way:
                    self._say(
                        f"stopping; waiting at most {self._setting.timeout_s:g} s for {under_way} answers under way"
                    )

    def _judge_one(self, image: torch.Tensor, prompt: str, round_: _Round) -> Judgement:
        try:
            key = self.key(image, prompt)
            with self._cache.claim(key):
                return self._answers(image, prompt, key, round_)
        except Halted:
            raise
        except BaseException as error:
            round_.end(error)
            raise

    def _answers(self, image: torch.Tensor, prompt: str, key: str, round_: _Round) -> Judgement:
        """Buy answers until one has scores or there are as many as there may be."""
        answers = self._cache.read(key)
        kept = len(answers)
        if kept:
            round_.known()
        body = b""
        while not self._settled(answers):
            round_.halt.check()
            body = body or request_body(image, prompt, self._setting.model, self._options)
            try:
                answers = (*answers, self._connection.ask(body, key, round_.halt))
            except (Rejected, Unanswered) as error:
                outcome: Outcome = "rejected" if isinstance(error, Rejected) else "unanswered"
                round_.missed(self.url, outcome, str(error))
                lost = Judgement(outcome=outcome, problem=f"{outcome}: {error}")
                return replace(lost, tokens=_tokens(answers), bought=_tokens(answers[kept:]))
            self._cache.write(key, model=self._setting.model, prompt=prompt, answers=answers)
            round_.answered()
        said = judged(answers[-1])
        secret = self._setting.secret  # again, as an answer may hold it in escapes
        return replace(
            said,
            rationale=secret.covered(said.rationale),
            problem=secret.covered(said.problem),
            tokens=_tokens(answers),
            bought=_tokens(answers[kept:]),
        )

    def _settled(self, answers: tuple[Answer, ...]) -> bool:
        return bool(answers) and (len(answers) >= self._attempts or judged(answers[-1]).outcome == "scored")


class _Round:
    """What the questions of one call share: whether they are called off, why, and how many in a row got no answer.

    A request that is turned down is its image's own fault once the endpoint has taken another.
    """

    def __init__(self) -> None:
        self.halt = Halt()
        self.cause: BaseException | None = None
        self._missed = 0
        self._takes_requests = False
        self._lock = threading.Lock()

    def end(self, cause: BaseException) -> None:
        """Call the questions off; the first cause counts."""
        with self._lock:
            self.cause = self.cause or cause
        self.halt.call()

    def known(self) -> None:
        """The endpoint is known to take such requests."""
        with self._lock:
            self._takes_requests = True

    def answered(self) -> None:
        """An answer came."""
        with self._lock:
            self._takes_requests = True
            self._missed = 0

    def missed(self, url: str, outcome: Outcome, reason: str) -> None:
        """A question got no answer; raises EndpointError when it is not the image that is at fault."""
        with self._lock:
            if outcome == "rejected" and self._takes_requests:
                return
            self._missed += 1
            if self._missed < _GIVE_UP:
                return
        raise EndpointError(
            f"judge endpoint {url}: {_GIVE_UP} images in a row got no answer, the last: {reason}",
            advice="see to the endpoint, then start again; what was answered is kept",
        )


def _tokens(answers: tuple[Answer, ...]) -> Tokens:
    return Tokens(
        answers=len(answers),
        input=sum(one.input_tokens for one in answers),
        output=sum(one.output_tokens for one in answers),
    )
