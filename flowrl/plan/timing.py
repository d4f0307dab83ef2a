"""How long a step and a run take, from the FLOPs of their phases and a rate per GPU."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flowrl.config import RunConfig
from flowrl.plan.costs import Costs, ScoringCost
from flowrl.plan.traffic import Transfer, gathered_to_score

BANDWIDTH = (
    25e9  # bytes per second, assumed, of each device: PCIe 4.0, or a network of 200 Gb/s; NVLink has 18 times it
)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Work on groups, whole ones, which some actors share."""

    name: str
    flops: int  # over all actors
    actors: int
    groups: int
    moved: int = 0  # bytes of each actor, meanwhile

    @property
    def rounds(self) -> int:
        """Groups of the actor that has most."""
        return -(-self.groups // self.actors)

    def seconds(self, flops_per_second: float) -> float:
        """How long it takes at a rate per actor: the longer of computing and moving."""
        return max(self.rounds * self.flops / self.groups / flops_per_second, self.moved / BANDWIDTH)


@dataclass(frozen=True, kw_only=True)
class PhaseTime:
    """A phase on a named GPU."""

    phase: Phase
    seconds: float
    hidden: float  # seconds of it in which others are waited for anyway


@dataclass(frozen=True, kw_only=True)
class Pass:
    """The phases that make scored groups, and those that come before and after."""

    before: tuple[Phase, ...]
    sampling: Phase
    scoring: tuple[Phase, ...]  # by the same actors, one after the other
    after: tuple[Phase, ...]
    together: bool  # a group is scored while others are sampled

    @property
    def phases(self) -> tuple[Phase, ...]:
        """In the order in which they begin."""
        return (*self.before, self.sampling, *self.scoring, *self.after)

    def times(self, rate: float) -> tuple[PhaseTime, ...]:
        """The phases at a rate per actor.

        Scoring beside sampling is hidden but for the last round, or as far as it is the slower of the two.
        """
        scoring = sum(phase.seconds(rate) for phase in self.scoring)
        left = 0.0
        if self.together and scoring:
            sampling = self.sampling.seconds(rate)
            last = scoring / self.scoring[0].rounds
            shown = max(last, sampling / self.sampling.rounds + scoring - sampling)
            left = scoring - min(scoring, shown)
        times = []
        for phase in self.phases:
            seconds = phase.seconds(rate)
            hidden = left * seconds / scoring if phase in self.scoring and scoring else 0.0
            times.append(PhaseTime(phase=phase, seconds=seconds, hidden=hidden))
        return tuple(times)

    def seconds(self, rate: float) -> float:
        """Of all of it."""
        return sum(time.seconds - time.hidden for time in self.times(rate))


def step_of(costs: Costs, transfers: tuple[Transfer, ...]) -> Pass:
    """A training step, in which `transfers` are made."""
    work, policy = costs.work, costs.policy
    turns = Phase(name="turns", flops=0, actors=work.learners, groups=work.groups, moved=_moved(transfers, "turns"))
    return Pass(
        before=(_encoding(costs),),
        sampling=Phase(
            name="rollout", flops=policy.sample_flops * work.forwards, actors=work.rollouts, groups=work.groups
        ),
        scoring=_scoring(
            costs,
            costs.trained,
            work.groups,
            work.samples,
            decoded=costs.steps_decode,
            moved=_moved(transfers, "score"),
        ),
        after=(
            Phase(
                name="update",
                flops=policy.update_flops * work.losses,
                actors=work.learners,
                groups=work.groups,
                moved=_moved(transfers, "update"),
            ),
            *((turns,) if turns.moved else ()),
        ),
        together=_together(costs.config),
    )


def evaluation_of(costs: Costs) -> Pass:
    """One evaluation, its groups of another size in forwards of about the same cost per sample."""
    config, work = costs.config, costs.work
    groups, images = config.eval.num_prompts, config.eval.num_prompts * config.eval.samples_per_prompt
    per_sample = costs.policy.sample_flops / work.samples_per_forward
    flops = round(images * config.eval.num_steps * per_sample)
    return Pass(
        before=(),
        sampling=Phase(name="rollout", flops=flops, actors=work.rollouts, groups=groups),
        scoring=_scoring(
            costs,
            costs.rewards,
            groups,
            images,
            decoded=costs.evaluations_decode,
            moved=gathered_to_score(costs, costs.rewards, groups),
        ),
        after=(),
        together=_together(config),
    )


def timeout_for(config: RunConfig, step: Pass, rate: float) -> int | None:
    """A placement.timeout_s under which an update, which is one call, can end; None where the run's own is enough."""
    update = max(phase.seconds(rate) for phase in step.after)
    if config.placement.mode == "local" or not update > config.placement.timeout_s:
        return None
    return int(10 ** math.ceil(math.log10(2 * update)))


def _together(config: RunConfig) -> bool:
    """Whether the scorers have devices of their own."""
    return config.placement.mode in ("split", "fused")


def _encoding(costs: Costs) -> Phase:
    """The prompts of a step, each once, if none of them is in the cache: the most that it can be."""
    tokens = costs.work.groups * costs.config.model.max_sequence_length
    flops = 2 * costs.model.text_encoder_parameters * tokens
    return Phase(name="encode", flops=flops, actors=1, groups=costs.work.groups)


def _moved(transfers: tuple[Transfer, ...], phase: str) -> int:
    return sum(transfer.of_each for transfer in transfers if transfer.phase == phase)


def _scoring(
    costs: Costs, rewards: tuple[ScoringCost, ...], groups: int, images: int, *, decoded: bool, moved: int
) -> tuple[Phase, ...]:
    actors = costs.work.scorers
    phases = [Phase(name="decode", flops=costs.image.flops * images, actors=actors, groups=groups)] if decoded else []
    flops = images * sum(reward.cost.flops for reward in rewards if reward.cost is not None)
    score = Phase(name="score", flops=flops, actors=actors, groups=groups, moved=moved)
    return (*phases, score) if flops else tuple(phases)
