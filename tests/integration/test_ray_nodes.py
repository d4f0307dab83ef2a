"""Two Ray nodes on one machine: where actors sit, and that a run over both is the run in one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flowrl.actors.group import RayRuntime
from flowrl.actors.runtime import ActorError
from flowrl.config import RewardSpec
from tests.cheap_rewards import BRIGHT
from tests.integration.runs import TinyRuns, same, unequal
from tests.seat import Seat

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of two nodes with two GPUs each, as Ray believes."""
    from ray.cluster_utils import Cluster  # here, so that the GPU tests can be collected where there is no Ray

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CUDA_VISIBLE_DEVICES")  # the tests hide GPUs, and Ray would not believe in these
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 2})
        nodes.add_node(num_cpus=2, num_gpus=2)
        yield nodes.address
        nodes.shutdown()


@pytest.fixture
def gpus(cluster: str) -> Iterator[RayRuntime]:
    """A runtime that hands out the GPUs of both nodes."""
    runtime = RayRuntime(address=cluster, threads=1, on_gpus=True, timeout_s=60.0)
    yield runtime
    runtime.close()


def test_actors_share_the_devices_that_they_are_seated_at(gpus: RayRuntime) -> None:
    gpus.reserve([2, 1, 3, 1])
    learners = gpus.start("learner", Seat, size=4, gang=False, devices=(0, 1, 2, 3))
    others = gpus.start("scorer", Seat, size=3, gang=False, devices=(0, 2, 2))
    gpus.ready()
    seats = [
        (group, [(node, gpu)])
        for group in (learners, others)
        for node, gpu in zip(
            gpus.get([group.submit(i, Seat.node) for i in range(group.size)]),
            gpus.get([group.submit(i, Seat.gpu) for i in range(group.size)]),
            strict=True,
        )
    ]
    first = [seat for group, [seat] in seats if group is learners]
    second = [seat for group, [seat] in seats if group is others]
    assert len(set(first)) == 4
    assert {gpu for _, gpu in first} == {"0", "1"}
    assert len({node for node, _ in first}) == 2
    assert second == [first[0], first[2], first[2]]


def test_more_devices_than_there_are_is_an_error_at_once(gpus: RayRuntime) -> None:
    with pytest.raises(ActorError, match=r"^placement: the actors need 5 GPUs, but Ray has 4$"):
        gpus.reserve([1] * 5)


def test_devices_that_another_run_holds_are_waited_for_and_then_an_error(cluster: str, gpus: RayRuntime) -> None:
    gpus.reserve([1] * 3)
    gpus._timeout_s = 0.5
    with pytest.raises(ActorError, match=r"^placement: 2 devices were not free within placement.timeout_s = 0.5 s"):
        gpus.reserve([1] * 2)


def test_a_run_on_two_nodes_is_the_run_in_one_process(runs: TinyRuns, tiny_reward: Path, cluster: str) -> None:
    train = [RewardSpec(name="dit_reward", options={"path": str(tiny_reward)})]
    changes = {"rewards__train": train, "rewards__watch": [RewardSpec(name=BRIGHT)]}
    local = runs.run(**changes)
    placed = {"mode": "split", "num_rollouts": 3, "num_scorers": 2, "num_learners": 1, "ray_address": cluster}
    found = runs.run(**changes, **{f"placement__{key}": value for key, value in placed.items()})
    assert same(found.adapter, local.adapter)
    assert unequal(found, local) == []
