"""Groups of roles: whatever the number of actors and the order in which they finish, the same results, in order."""

from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from flowrl.actors.encoder import Encoder
from flowrl.actors.learner import Learner
from flowrl.actors.roles import Encoders, Learners, Rollouts, Scorers
from flowrl.actors.rollout import Rollout
from flowrl.actors.run_actors import RunActors, ScoredGroups
from flowrl.actors.runtime import LocalRuntime, Runtime
from flowrl.actors.scorer import Scorer
from flowrl.actors.turns import Turns
from flowrl.actors.weights import WeightsError, pack
from flowrl.algorithms.configs import FlowGRPOConfig
from flowrl.config import GateSection, OptimSection, RewardSpec
from flowrl.types import Prompt, RolloutRequest, Scores, Trajectory
from tests import tiny
from tests.scrambled import ORDERS, ScrambledActors, ScrambledRuntime

REWARD = "tests.cheap_rewards:LatentNorm"


class Parts:
    """The groups of a run, on some runtime."""

    def __init__(
        self,
        folder: Path,
        runtime: Runtime,
        *,
        rollouts: int,
        scorers: int,
        lockstep: bool = False,
        in_turn: bool = False,
    ) -> None:
        model = tiny.model_spec(folder)
        self.runtime = runtime
        scoring = {"model": model, "train": [RewardSpec(name=REWARD)], "watch": [], "sharded": False}
        scoring |= {"timeout_s": 9.0, "shows_images": True}
        sampling = {"model": model, "samples_per_forward": 0}
        self.rollout_group = runtime.start("rollout", partial(Rollout, **sampling), size=rollouts, gang=False)
        self.scorer_group = runtime.start("scorer", partial(Scorer, **scoring), size=scorers, gang=False)
        self.encoder_group = runtime.start("encoder", partial(Encoder, model=model), size=1, gang=False)
        turns = Turns(runtime)
        self.encoder = Encoders(runtime, self.encoder_group, turns if in_turn else None)
        for group in (self.rollout_group, self.scorer_group) if in_turn else ():
            turns.join(group)
        self.rollouts = Rollouts(runtime, self.rollout_group, turns)
        self.scorers = Scorers(runtime, self.scorer_group, turns, lockstep=lockstep)

    def run(self, count: int, num_images: int | None = None) -> ScoredGroups:
        requests = [
            RolloutRequest(
                prompt=Prompt(id=i, text=tiny.TEXTS[i]),
                seed=0,
                step=1,
                num_samples=3,
                plan=tiny.sde_plan(num_steps=2, stop=1),
                guidance_scale=4.5,
            )
            for i in range(count)
        ]
        actors = RunActors(
            runtime=self.runtime,
            encoder=self.encoder,
            rollouts=self.rollouts,
            scorers=self.scorers,
            learners=Learners(self.runtime, self.scorer_group, Turns(self.runtime)),  # none is asked to learn
        )
        return actors.sample_and_score(requests, actors.encode(requests), num_images=num_images)

    def trajectories(self, groups: ScoredGroups) -> list[Trajectory]:
        return self.runtime.get(groups.trajectories)


@pytest.fixture(scope="module")
def expected(sd3_folder: Path) -> tuple[list[Trajectory], list[Scores]]:
    """Seven groups, one after the other in one process."""
    local = Parts(sd3_folder, LocalRuntime(), rollouts=1, scorers=1)
    groups = local.run(7)
    return local.trajectories(groups), groups.scores


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("rollouts", "scorers", "lockstep"), [(1, 1, False), (2, 3, False), (3, 2, True), (2, 3, True), (1, 4, True)]
)
def test_results_come_back_in_the_order_of_the_requests_whatever_finishes_first(
    sd3_folder: Path,
    expected: tuple[list[Trajectory], list[Scores]],
    order: str,
    rollouts: int,
    scorers: int,
    lockstep: bool,
) -> None:
    trajectories, scores = expected
    runtime = ScrambledRuntime(ORDERS[order]())
    parts = Parts(sd3_folder, runtime, rollouts=rollouts, scorers=scorers, lockstep=lockstep)
    found = parts.run(7)
    for one, other in zip(parts.trajectories(found), trajectories, strict=True):
        assert one.prompt == other.prompt
        assert torch.equal(one.final_latents, other.final_latents)
        assert one.path is not None
        assert other.path is not None
        assert torch.equal(one.path.log_probs, other.path.log_probs)
    for scored, wanted in zip(found.scores, scores, strict=True):
        assert torch.equal(scored.total, wanted.total)
    assert len({tuple(scores.total.tolist()) for scores in found.scores}) == 7
    # No rollout has more than one call waiting behind the one at work.
    assert runtime.most_waiting <= 2 * rollouts
    assert {index for index, method, _ in log(parts.rollout_group)} == set(range(rollouts))


def log(group: Any) -> list[tuple[int, str, tuple[Any, ...]]]:
    assert isinstance(group, ScrambledActors)
    return group.log


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("count", [1, 3, 4, 7])
def test_in_lockstep_every_rank_scores_in_every_round_and_every_group_is_scored(
    sd3_folder: Path, order: str, count: int
) -> None:
    parts = Parts(sd3_folder, ScrambledRuntime(ORDERS[order]()), rollouts=2, scorers=3, lockstep=True)
    found = parts.run(count, num_images=1)
    calls = log(parts.scorer_group)
    rounds = [calls[i : i + 3] for i in range(0, len(calls), 3)]
    assert len(rounds) == -(-count // 3)
    assert all([index for index, _, _ in one] == [0, 1, 2] for one in rounds)
    assert {method for _, method, _ in calls} == {"evaluate"}
    # A rank without a group of its own repeats the last one of the round; no group is scored in two rounds.
    scored = [list(dict.fromkeys(id(args[0]) for _, _, args in one)) for one in rounds]
    assert sorted(chain(*scored)) == sorted(id(ref) for ref in found.trajectories)
    assert [len(one) for one in scored] == [3] * (count // 3) + ([count % 3] if count % 3 else [])
    assert all(scores.images is not None and len(scores.images) == 1 for scores in found.scores)


def test_without_lockstep_the_scorers_take_turns_and_each_group_is_scored_once(sd3_folder: Path) -> None:
    parts = Parts(sd3_folder, ScrambledRuntime(ORDERS["random"]()), rollouts=2, scorers=3)
    found = parts.run(7)
    calls = log(parts.scorer_group)
    assert sorted(id(args[0]) for _, _, args in calls) == sorted(id(ref) for ref in found.trajectories)
    assert sorted(Counter(index for index, _, _ in calls).values()) == [2, 2, 3]
    assert {method for _, method, _ in calls} == {"score"}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("scorers", "lockstep"), [(1, False), (3, False), (2, True)])
def test_in_turns_the_roles_have_the_devices_one_after_the_other_and_the_numbers_are_the_same(
    sd3_folder: Path, expected: tuple[list[Trajectory], list[Scores]], order: str, scorers: int, lockstep: bool
) -> None:
    runtime = ScrambledRuntime(ORDERS[order]())
    parts = Parts(sd3_folder, runtime, rollouts=2, scorers=scorers, lockstep=lockstep, in_turn=True)
    for _ in range(2):
        found = parts.run(7)
        for scored, wanted in zip(found.scores, expected[1], strict=True):
            assert torch.equal(scored.total, wanted.total)
    for group, work, turns in (
        (parts.rollout_group, "generate", [False, True, False, True, False]),
        (parts.scorer_group, "score", [False, True, False, True]),
    ):
        for index in range(group.size):
            there, moves = False, []
            for _, name, args in (call for call in log(group) if call[0] == index):
                if name == "move_frozen":
                    there = args[0]
                    moves.append(there)
                else:
                    assert name == work
                    assert there
            assert moves == turns


def test_text_encoders_are_loaded_when_nobody_else_is_there(sd3_folder: Path) -> None:
    parts = Parts(sd3_folder, ScrambledRuntime(ORDERS["first"]()), rollouts=1, scorers=1, in_turn=True)
    parts.run(2)
    there = [args[0] for _, name, args in log(parts.scorer_group) if name == "move_frozen"]
    assert there == [False, True]
    asked = len(log(parts.encoder_group))
    parts.encoder.conditions([tiny.TEXTS[5]], soon=[tiny.TEXTS[4]])
    assert [name for _, name, _ in log(parts.encoder_group)[asked:]] == ["prepare", "encode"]
    last = [args[0] for group in (parts.rollout_group, parts.scorer_group) for _, _, args in log(group)[-1:]]
    assert last == [False, False]
    parts.encoder.conditions([tiny.TEXTS[4]])  # prepared: nothing moves
    assert [name for _, name, _ in log(parts.encoder_group)[asked:]] == ["prepare", "encode", "encode"]


def test_a_text_is_encoded_once_while_it_is_remembered(sd3_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Parts(sd3_folder, ScrambledRuntime(ORDERS["first"]()), rollouts=1, scorers=1)
    parts.run(3)
    parts.run(3)
    assert [args for _, _, args in log(parts.encoder_group)] == [(text,) for text in (*tiny.TEXTS[:3], "")]
    monkeypatch.setattr("flowrl.actors.roles.MAX_CONDITIONS", 2)
    first = parts.encoder.conditions([*tiny.TEXTS[:4]])
    assert len(first.of_each) == 4  # more than are remembered, and all of them there
    parts.encoder.conditions([tiny.TEXTS[0]])
    assert log(parts.encoder_group)[-1][2] == (tiny.TEXTS[0],)


def learners(folder: Path, runtime: Runtime, size: int) -> tuple[Learners, Any]:
    arguments = {
        "model": tiny.model_spec(folder),
        "algorithm": FlowGRPOConfig(inner_steps=1),
        "optim": OptimSection(),
        "gate": GateSection(),
        "samples_per_forward": 0,
    }
    group = runtime.start("learner", partial(Learner, **arguments), size=size, gang=False)
    return Learners(runtime, group, Turns(runtime)), group


def test_learners_share_the_groups_of_a_step_without_loss_or_overlap(sd3_folder: Path) -> None:
    runtime = ScrambledRuntime(ORDERS["last"]())
    parts = Parts(sd3_folder, runtime, rollouts=1, scorers=1)
    group, started = learners(sd3_folder, runtime, size=2)
    refs = parts.run(4).trajectories
    advantages = [torch.full((3,), float(i)) for i in range(4)]
    metrics = group.update(1, refs, advantages)
    assert {metric.key for metric in metrics} >= {"policy/kl", "policy/grad_norm"}
    taken = {index: args for index, method, args in log(started) if method == "update"}
    for rank, places in {0: (0, 2), 1: (1, 3)}.items():
        step, values, *trajectories = taken[rank]
        assert step == 1
        assert [value[0].item() for value in values] == list(places)
        assert [id(ref) for ref in trajectories] == [id(refs[place]) for place in places]


def test_weights_reach_every_rollout_and_stamp_what_it_samples(sd3_folder: Path) -> None:
    runtime = ScrambledRuntime(ORDERS["first"]())
    parts = Parts(sd3_folder, runtime, rollouts=2, scorers=1)
    group, started = learners(sd3_folder, runtime, size=1)
    before = parts.trajectories(parts.run(2))
    tiny.perturb(started.roles[0]._policy)
    started.roles[0]._version = 5
    assert parts.rollouts.load_weights(group.weights()) == 2 * group_bytes(started)  # one copy for each
    after = parts.trajectories(parts.run(2))
    assert [one.policy_version for one in before + after] == [0, 0, 5, 5]
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one.seeds, other.seeds)
        assert not torch.equal(one.final_latents, other.final_latents)


def group_bytes(started: Any) -> int:
    return 4 * sum(parameter.numel() for _, parameter in started.roles[0]._policy.trainable())


def test_weights_of_another_model_are_refused_by_the_rollouts(sd3_folder: Path) -> None:
    runtime = LocalRuntime()
    parts = Parts(sd3_folder, runtime, rollouts=1, scorers=1)
    other = runtime.put(pack([("x", torch.zeros(3))], version=1))
    with pytest.raises(WeightsError, match="do not fit this model"):
        parts.rollouts.load_weights(other)
