"""How the work of one training step is cut: groups, forwards, and who does how many of them."""

from __future__ import annotations

from dataclasses import dataclass

from flowrl.config import RunConfig
from flowrl.protocols import Algorithm
from flowrl.registry import resolve
from flowrl.seating import seating


@dataclass(frozen=True, kw_only=True)
class StepWork:
    """The counts of one step of a run.

    Example: 48 prompts in groups of 16 are 768 samples, 384 in each of two inner steps; with 4 samples in a forward and
    10 sampler steps, of which 9 are trained, they take 1,920 forwards and 1,728 losses with their backward passes.
    """

    groups: int
    samples: int
    samples_per_forward: int
    inner_steps: int
    sampler_steps: int
    trained_steps: int
    rollouts: int
    scorers: int
    learners: int

    @property
    def forwards(self) -> int:
        """Of the sampling, with both branches of the guidance in one, over all rollouts."""
        return self.samples // self.samples_per_forward * self.sampler_steps

    @property
    def losses(self) -> int:
        """Micro-batches of the update, each with its backward pass, over all learners and inner steps."""
        return self.samples // self.samples_per_forward * self.trained_steps


def step_work(config: RunConfig) -> StepWork:
    """The counts that a checked configuration gives."""
    rollout, placement = config.rollout, config.placement
    algorithm: Algorithm = resolve("algorithm", config.algorithm.name)[0](config.algorithm, config.run.seed)
    seats = seating(placement)
    return StepWork(
        groups=rollout.prompts_per_step,
        samples=rollout.prompts_per_step * rollout.group_size,
        samples_per_forward=rollout.forward_size,
        inner_steps=algorithm.inner_steps,
        sampler_steps=rollout.num_steps,
        trained_steps=len(algorithm.plan(1, rollout.num_steps).trained),
        rollouts=len(seats.rollouts or seats.learners),
        scorers=len(seats.scorers),
        learners=len(seats.learners),
    )
