"""What every caller of a reward relies on: scores in parts, seeds by prompt, the device."""

from __future__ import annotations

import pytest
import torch

from flowrl.base.devices import pick_device
from flowrl.base.errors import UserError
from flowrl.core.reward_call import RewardInputError, score_in_parts
from flowrl.core.seeds import derive, evaluation_seeds
from flowrl.types import RewardInput
from tests.cheap_rewards import Brightness


def batch(size: int) -> RewardInput:
    pixels = torch.linspace(0, 1, size)[:, None, None, None].expand(size, 3, 2, 2)
    return RewardInput(prompts=("x",) * size, seeds=torch.arange(size), pixels=pixels)


def test_samples_are_taken_as_many_at_a_time_as_the_reward_scores() -> None:
    five, taken = batch(5), []

    def take(rows: range) -> RewardInput:
        taken.append(rows)
        return five.take(rows)

    assert five.pixels is not None
    torch.testing.assert_close(score_in_parts(Brightness(), 5, take), five.pixels.flatten(1).mean(1))
    assert taken == [range(2), range(2, 4), range(4, 5)]


def test_a_refusal_names_the_reward_and_keeps_its_own_words() -> None:
    class Picky(Brightness):
        def __call__(self, batch: RewardInput) -> torch.Tensor:
            raise ValueError("not my world")

    one = batch(1)
    with pytest.raises(RewardInputError, match=r"^reward 'brightness' refuses its batch: not my world$") as caught:
        score_in_parts(Picky(), 1, one.take)
    assert str(caught.value.__cause__) == "not my world"


def test_seeds_of_an_evaluation_come_from_the_prompt_alone() -> None:
    found = evaluation_seeds(["a", "b", "a"])
    assert found.tolist() == [derive("evaluation", 0, prompt) for prompt in "aba"]
    assert (evaluation_seeds(["a"], seed=1) != found[:1]).all()


def test_a_device_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (pick_device("auto"), pick_device("cpu")) == ("cpu", "cpu")
    with pytest.raises(UserError, match=r"^--device must be cpu or auto on this machine, got 'cuda': .* finds no GPU$"):
        pick_device("cuda", key="--device")
    with pytest.raises(UserError, match=r"^device must be auto, cpu or cuda, got 'tpu'$"):
        pick_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (pick_device("auto"), pick_device("cuda"), pick_device("cpu")) == ("cuda", "cuda", "cpu")
