"""Which device each actor of a run uses."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import chain

from flowrl.config import PlacementSection


@dataclass(frozen=True, kw_only=True)
class Seating:
    """The number of the device of each actor, by role. Where the learners also sample, there are no rollouts.

    Example: two learners that sample and a scorer, on devices of their own; the encoder sits with the scorer:
    ``Seating(learners=(0, 1), rollouts=(), scorers=(2,), encoder=(2,))``
    """

    learners: tuple[int, ...]
    rollouts: tuple[int, ...]
    scorers: tuple[int, ...]
    encoder: tuple[int, ...]

    @property
    def shares(self) -> list[int]:
        """How many actors sit at each device."""
        count = Counter(chain(self.learners, self.rollouts, self.scorers, self.encoder))
        return [count[device] for device in sorted(count)]


def seating(placement: PlacementSection) -> Seating:
    """The seats of a configuration.

    `colocated` has as many devices as its largest role has actors, and each role begins at the first; the other modes
    give each role devices of its own. A gang's ranks never meet on a device: NCCL does not allow it. The encoder works
    now and then, and sits with a scorer.
    """
    rollouts = 0 if placement.learners_sample else placement.num_rollouts
    sizes = (placement.num_learners, rollouts, placement.num_scorers)
    if placement.mode == "local":
        sizes = (1, 0, 1)
    starts = (0, 0, 0)
    if placement.mode in ("split", "fused"):
        starts = (0, sizes[0], sizes[0] + sizes[1])
    learners, sampling, scorers = (tuple(range(start, start + size)) for start, size in zip(starts, sizes, strict=True))
    return Seating(learners=learners, rollouts=sampling, scorers=scorers, encoder=scorers[:1])
