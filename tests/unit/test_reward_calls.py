"""What every caller of a reward relies on: scores in parts, seeds by prompt, the device."""

from __future__ import annotations

import pytest
import torch

from flowrl.base.devices import pick_device
from flowrl.base.errors import CheckpointError, UserError
from flowrl.core.seeds import derive, evaluation_seeds
from flowrl.reward_call import RewardCallError, RewardInputError, score_in_parts, shapes_of
from flowrl.types import RewardInput, TextCondition
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


class Failing(Brightness):
    """Raises what it is given."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def __call__(self, batch: RewardInput) -> torch.Tensor:
        raise self.error


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (KeyError("colour"), "KeyError: 'colour'"),
        (RuntimeError("mat1 and mat2\n  differ"), "RuntimeError: mat1 and mat2 differ"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
            "out of memory with 2 samples in one call; lower its option batch_size, which is 2: CUDA out of memory. "
            "Tried to allocate 2.00 GiB.",
        ),
        (MemoryError(), "out of memory with 2 samples in one call; lower its option batch_size, which is 2"),
        (AssertionError(), "AssertionError"),
        (SystemExit(0), "SystemExit: 0"),
    ],
)
def test_a_failure_is_one_line_with_the_reward_its_class_and_its_batch(error: BaseException, says: str) -> None:
    three = batch(3)
    with pytest.raises(RewardCallError) as caught:
        score_in_parts(Failing(error), 3, three.take)
    assert str(caught.value) == (
        f"reward 'brightness' ({__name__}:Failing) fails on a batch of pixels [2, 3, 2, 2]: " + says
    )
    assert isinstance(caught.value, UserError)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("kind", [UserError, CheckpointError, RewardInputError])
def test_a_user_error_of_a_reward_is_not_worded_anew(kind: type[UserError]) -> None:
    one, error = batch(1), kind("the server is gone")
    with pytest.raises(UserError, match=r"^the server is gone$") as caught:
        score_in_parts(Failing(error), 1, one.take)
    assert caught.value is error


def test_scores_that_are_no_tensor_are_named_by_their_type() -> None:
    class Listing(Brightness):
        def __call__(self, batch: RewardInput) -> torch.Tensor:
            return [0.5]  # type: ignore[return-value]

    one = batch(1)
    with pytest.raises(RewardCallError, match=r"must return one score per sample, \[1\], got list$"):
        score_in_parts(Listing(), 1, one.take)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, torch.bool])
def test_scores_that_are_no_real_floating_point_numbers_are_refused(dtype: torch.dtype) -> None:
    class Odd(Brightness):
        def __call__(self, batch: RewardInput) -> torch.Tensor:
            return super().__call__(batch).to(dtype)

    one = batch(1)
    with pytest.raises(
        RewardCallError, match=rf"must return floating-point numbers, got {dtype}; end with .float\(\)$"
    ):
        score_in_parts(Odd(), 1, one.take)


def test_the_shapes_of_a_batch_are_those_of_what_it_holds() -> None:
    condition = TextCondition(embeds=torch.zeros(1, 28, 96), pooled=torch.zeros(1, 80))
    latent = RewardInput(prompts=("x",), seeds=torch.zeros(1), latents=torch.zeros(1, 16, 8, 8), condition=condition)
    assert shapes_of(latent) == "latents [1, 16, 8, 8], embeds [1, 28, 96], pooled [1, 80]"
    assert shapes_of(RewardInput(prompts=("x",), seeds=torch.zeros(1))) == "nothing but prompts"


def test_seeds_of_an_evaluation_come_from_the_prompt_alone() -> None:
    found = evaluation_seeds(["a", "b", "a"])
    assert found.tolist() == [derive("evaluation", 0, prompt) for prompt in "aba"]
    assert (evaluation_seeds(["a"], seed=1) != found[:1]).all()


def test_a_device_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (pick_device("auto"), pick_device("cpu")) == ("cpu", "cpu")
    with pytest.raises(UserError, match=r"^--device is cuda, but torch .* finds no GPU that it can use; take cpu, or"):
        pick_device("cuda", key="--device")
    with pytest.raises(UserError, match=r"^device must be auto, cpu or cuda, got 'tpu'$"):
        pick_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (pick_device("auto"), pick_device("cuda"), pick_device("cpu")) == ("cuda", "cuda", "cpu")
