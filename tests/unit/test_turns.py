"""Weights that leave a device and come back: what is frozen moves, what is trained stays, and the numbers too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flowrl.actors.fused import Fused
from flowrl.actors.runtime import LocalRuntime
from flowrl.actors.scorer import Scorer
from flowrl.actors.turns import Turns, move_frozen
from flowrl.algorithms.configs import FlowGRPOConfig
from flowrl.config import GateSection, OptimSection, RewardSpec
from tests import tiny

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


class Layer(torch.nn.Module):
    """A frozen weight, a trained one, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = torch.nn.Parameter(torch.ones(1000, 1000), requires_grad=False)
        self.trained = torch.nn.Parameter(torch.ones(10))
        self.register_buffer("table", torch.ones(100))


@pytest.mark.gpu
def test_frozen_weights_and_buffers_leave_and_their_memory_is_free() -> None:
    layer = Layer().to("cuda")
    before = torch.cuda.memory_reserved()
    move_frozen(layer, "cpu")
    assert {name: value.device.type for name, value in layer.state_dict().items()} == {
        "frozen": "cpu",
        "trained": "cuda",
        "table": "cpu",
    }
    assert torch.cuda.memory_reserved() < before
    move_frozen(layer, "cuda")
    assert {value.device.type for value in layer.state_dict().values()} == {"cuda"}


def test_moving_keeps_the_parameters_that_an_optimizer_knows() -> None:
    layer = Layer()
    before = {name: id(parameter) for name, parameter in layer.named_parameters()}
    move_frozen(layer, "cpu")
    assert {name: id(parameter) for name, parameter in layer.named_parameters()} == before


@pytest.mark.parametrize("device", DEVICES)
def test_a_role_that_left_and_came_back_goes_on_as_if_it_had_not(sd3_folder: Path, tmp_path: Path, device: str) -> None:
    model = tiny.model_spec(sd3_folder, device=device)
    arguments = (model, FlowGRPOConfig(inner_steps=1), OptimSection(lr=1e-2), GateSection(max_ratio_absdev=1.0), 0)
    reward = RewardSpec(name="dit_reward", options={"path": str(tiny.write_reward(tmp_path, sd3_folder))})
    conditions = tiny.conditions(sd3_folder, tiny.TEXTS[0], "")
    scores, adapters = [], []
    for leaves in (False, True):
        runtime = LocalRuntime()
        learner = runtime.start("learner", lambda: Fused(*arguments), size=1, gang=False)
        scorer = runtime.start(
            "scorer",
            lambda: Scorer(model, [reward], [], sharded=False, timeout_s=9.0, shows_images=False),
            size=1,
            gang=False,
        )
        turns = Turns(runtime)
        for group in (learner, scorer) if leaves else ():
            turns.join(group)
        assert turns.taken == leaves
        for step in (1, 2):
            turns.take(learner)
            weights = learner.submit(0, Fused.weights, False)
            runtime.get([learner.submit(0, Fused.load_weights, weights)])
            sampled = learner.submit(0, Fused.generate, tiny.request(step, step=step), *conditions)
            turns.take(scorer)
            [scored] = runtime.get([scorer.submit(0, Scorer.score, sampled)])
            turns.take(learner)
            runtime.get([learner.submit(0, Fused.update, step, [scored.total - scored.total.mean()], sampled)])
            scores.append(scored.total)
        [found] = runtime.get([learner.submit(0, Fused.weights, False)])
        adapters.append(torch.from_numpy(found.payload.view("float32").copy()))
    rounding = 0.0 if device == "cpu" else 1e-4  # kernels of a GPU may add in another order each time
    torch.testing.assert_close(torch.stack(scores[:2]), torch.stack(scores[2:]), rtol=0, atol=rounding)
    torch.testing.assert_close(adapters[0], adapters[1], rtol=0, atol=rounding)
    assert adapters[0].abs().max() > 1e-3
