"""All the actors of a run, and the way of a step's groups through them: sampled by one, scored by another."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from flowrl.actors.roles import Conditions, Encoders, Learners, Rollouts, Scorers
from flowrl.actors.runtime import Ref, Runtime
from flowrl.types import RolloutRequest, Scores


@dataclass(frozen=True, kw_only=True)
class ScoredGroups:
    """Groups in the order they were asked for: where they are, and what the rewards say."""

    trajectories: list[Ref]
    scores: list[Scores]
    rollout_s: float  # from the first order until the last group was sampled
    score_s: float  # from then until the last score was there


@dataclass(frozen=True, kw_only=True)
class RunActors:
    """The actors of each role."""

    runtime: Runtime
    encoder: Encoders
    rollouts: Rollouts
    scorers: Scorers
    learners: Learners

    def encode(self, requests: Sequence[RolloutRequest], *, soon: Sequence[str] = ()) -> Conditions:
        """The text conditions of the requests; `soon` are texts that will be asked for later."""
        return self.encoder.conditions([request.prompt.text for request in requests], soon=soon)

    def sample_and_score(
        self, requests: Sequence[RolloutRequest], conditions: Conditions, *, num_images: int | None = None
    ) -> ScoredGroups:
        """Sample and score groups; a group is scored as soon as it and the scorers are there.

        With `num_images` every reward scores, and so many images of each group come back.
        """
        began = time.perf_counter()
        scorers = self.scorers
        trajectories: dict[int, Ref] = {}  # place in requests -> reference
        scored: dict[int, Ref] = {}
        waiting: list[int] = []  # sampled, and not yet given to the scorers
        for place, trajectory in self.rollouts.stream(requests, conditions):
            trajectories[place] = trajectory
            waiting.append(place)
            last = len(trajectories) == len(requests)
            while waiting and (last or (len(waiting) >= scorers.round_size and not scorers.waits)):
                together, waiting = waiting[: scorers.round_size], waiting[scorers.round_size :]
                refs = scorers.submit([trajectories[i] for i in together], num_images)
                scored.update(zip(together, refs, strict=True))
        sampled = time.perf_counter()
        scores: list[Scores] = []
        for place in range(len(requests)):  # one by one: the timeout is of each answer, not of all
            scores += self.runtime.get([scored[place]])
        return ScoredGroups(
            trajectories=[trajectories[i] for i in range(len(requests))],
            scores=scores,
            rollout_s=sampled - began,
            score_s=time.perf_counter() - sampled,
        )

    def sync(self, *, ema: bool = False) -> int:
        """Give the rollouts the learners' weights, or their moving average; returns the bytes that this moved."""
        return self.rollouts.load_weights(self.learners.weights(ema=ema))

    @contextmanager
    def evaluation_weights(self, *, ema: bool) -> Iterator[None]:
        """Within the context the rollouts sample with the moving average, if `ema`, else with what they have.

        An error ends the run, so it leaves them as they are.
        """
        if ema:
            self.sync(ema=True)
        yield
        if ema:
            self.sync()
