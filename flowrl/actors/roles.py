"""The actors of each role, as the driver speaks to them: references in and out, never a latent.

A call is named by a method of the role's Protocol, so that a renamed method is found by the type checker.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from flowrl.actors.runtime import ActorGroup, Ref, Runtime
from flowrl.actors.turns import Turns
from flowrl.protocols import Encoder, Learner, Rollout, Scorer
from flowrl.types import Metric, RolloutRequest, Scores, UpdateResult

MAX_CONDITIONS = 512  # that are remembered; of SD3.5 each is 2.7 MB in the object store
_QUEUED_PER_ROLLOUT = 2  # one at work, one waiting, so that no rollout idles while the driver looks elsewhere


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Where the text conditions of a list of prompts are, and that of the empty one."""

    of_each: list[Ref]
    negative: Ref


class Encoders:
    """Conditions of prompts, each encoded once while it is remembered."""

    def __init__(self, runtime: Runtime, group: ActorGroup, turns: Turns | None) -> None:
        """Without `turns` the text encoders stay loaded; else they are loaded for many texts at once, in a turn."""
        self._runtime = runtime
        self._group = group
        self._turns = turns
        self._known: OrderedDict[str, Ref] = OrderedDict()
        self._prepared: set[str] = set()

    def conditions(self, texts: Sequence[str], *, soon: Sequence[str] = ()) -> Conditions:
        """The conditions of texts, once those that are new have been encoded.

        Where text encoders do not stay loaded, what is new among these and those of `soon`, which will be asked for
        later, is encoded together.
        """
        new = sorted({*texts, *soon, ""} - self._prepared)
        if self._turns is not None and new:
            self._turns.clear()
            self._runtime.get([self._group.submit(0, Encoder.prepare, new)])
            self._prepared.update(new)
        *of_each, negative = [self._condition(text) for text in (*texts, "")]
        for ref in (*of_each, negative):
            self._runtime.wait([ref])
        while len(self._known) > MAX_CONDITIONS:
            self._known.popitem(last=False)
        return Conditions(of_each=of_each, negative=negative)

    def _condition(self, text: str) -> Ref:
        if text not in self._known:
            self._known[text] = self._group.submit(0, Encoder.encode, text)
        self._known.move_to_end(text)
        return self._known[text]


class Rollouts:
    """The rollout actors; any of them can sample any group, with the same result."""

    def __init__(self, runtime: Runtime, group: ActorGroup, turns: Turns) -> None:
        self._runtime = runtime
        self._group = group
        self._turns = turns
        self.size = group.size

    def stream(self, requests: Sequence[RolloutRequest], conditions: Conditions) -> Iterator[tuple[int, Ref]]:
        """Have the groups sampled; yields (place in requests, reference to its Trajectory) as each is done."""
        self._turns.take(self._group)
        queue = list(zip(range(len(requests)), requests, conditions.of_each, strict=True))[::-1]
        sampling: dict[Ref, tuple[int, int]] = {}  # reference -> (place, actor)
        load = [0] * self.size
        while queue or sampling:
            while queue and min(load) < _QUEUED_PER_ROLLOUT:
                place, request, condition = queue.pop()
                actor = load.index(min(load))
                group = self._group.submit(actor, Rollout.generate, request, condition, conditions.negative)
                sampling[group] = place, actor
                load[actor] += 1
            done = self._runtime.wait(list(sampling))
            place, actor = sampling.pop(done)
            load[actor] -= 1
            yield place, done

    def load_weights(self, weights: Ref) -> int:
        """Have all sample with these weights from now on; returns the bytes that this moved."""
        return sum(self._runtime.get([self._group.submit(i, Rollout.load_weights, weights) for i in range(self.size)]))


class Scorers:
    """The scorer actors. With a sharded reward they are a gang, and score one group each, all at the same time."""

    def __init__(self, runtime: Runtime, group: ActorGroup, turns: Turns, *, lockstep: bool) -> None:
        self._runtime = runtime
        self._group = group
        self._turns = turns
        self._lockstep = lockstep and group.size > 1
        self._next = 0

    @property
    def waits(self) -> bool:
        """Whether all groups must have been sampled before the first is scored."""
        return self._turns.taken

    @property
    def round_size(self) -> int:
        """How many groups are scored at a time."""
        return self._group.size if self._lockstep else 1

    def submit(self, trajectories: Sequence[Ref], num_images: int | None) -> list[Ref]:
        """Score up to `round_size` groups; with `num_images` as an evaluation. One reference to Scores per group."""
        self._turns.take(self._group)
        method: Callable[..., Scores] = Scorer.score if num_images is None else Scorer.evaluate
        extra = [] if num_images is None else [num_images]
        if not self._lockstep:
            self._next = (self._next + 1) % self._group.size
            return [self._group.submit(self._next, method, trajectory, *extra) for trajectory in trajectories]
        # Each call is a sequence of collectives, so a rank without a group of its own repeats the last one.
        padded = [*trajectories, *[trajectories[-1]] * (self._group.size - len(trajectories))]
        refs = [self._group.submit(rank, method, trajectory, *extra) for rank, trajectory in enumerate(padded)]
        return refs[: len(trajectories)]


class Learners:
    """The learner actors: equal weights on each, trained on the mean of their gradients."""

    def __init__(self, runtime: Runtime, group: ActorGroup, turns: Turns) -> None:
        self._runtime = runtime
        self._group = group
        self._turns = turns
        self.size = group.size

    def update(self, step: int, trajectories: Sequence[Ref], advantages: Sequence[torch.Tensor]) -> list[Metric]:
        """Train on the groups of a step; rank r takes groups r, r + size, ..., whole groups only."""
        self._turns.take(self._group)
        refs = [
            self._group.submit(
                rank, Learner.update, step, list(advantages[rank :: self.size]), *trajectories[rank :: self.size]
            )
            for rank in range(self.size)
        ]
        results: list[UpdateResult] = self._runtime.get(refs)
        return [metric for result in results for metric in result.metrics]

    def weights(self, *, ema: bool = False) -> Ref:
        """A reference to the current PolicyWeights, or to their moving average."""
        return self._group.submit(0, Learner.weights, ema)

    def save(self, folder: Path) -> None:
        """Write the resumable state of the learners into an existing folder."""
        self._runtime.get([self._group.submit(rank, Learner.save, str(folder)) for rank in range(self.size)])

    def see(self, file: Path) -> bool:
        """Whether a file is there for every learner."""
        return all(self._runtime.get([self._group.submit(r, Learner.sees, str(file)) for r in range(self.size)]))

    def load(self, folder: Path) -> None:
        """Have every learner continue from a saved state."""
        self._runtime.get([self._group.submit(rank, Learner.load, str(folder)) for rank in range(self.size)])

    def load_adapter(self, folder: Path) -> None:
        """Have every learner start from an exported adapter."""
        self._runtime.get([self._group.submit(rank, Learner.load_adapter, str(folder)) for rank in range(self.size)])

    def export(self, folder: Path) -> None:
        """Write the adapter in the format of the family's pipeline."""
        self._runtime.get([self._group.submit(rank, Learner.export, str(folder)) for rank in range(self.size)])
