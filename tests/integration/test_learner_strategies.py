"""Learners that share the model in each of the ways: what several ranks make is what one makes, to rounding."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flowrl.config import LearnerStrategy
from tests import learners
from tests.learner_ranks import GROUPS, Found, Gang, train

STRATEGIES: tuple[LearnerStrategy, ...] = ("ddp", "fsdp2", "zero2", "zero3")
STEPS = 2
# AdamW divides a gradient by its own size, which makes a step of the rounding of one that is almost zero. With an eps
# far above all gradients it is a step of size lr along their mean, and what it moves tells the gradient's own rounding.
PLAIN = {"lr": 1.0, "eps": 1.0, "clip_norm": 1e9, "weight_decay": 0.0, "ema_every": 1}
# A float32 sum of n numbers in another order differs by up to n roundings; here n micro-batches are summed in each
# step: of each group the three trained sampler steps. Largest seen: 4.4e-7, with two ranks and with three.
ROUNDING = STEPS * 3 * GROUPS * 2.0**-24


@dataclass(frozen=True, kw_only=True)
class Alone:
    """What one learner in this process makes of the same groups, and the state it saved."""

    found: Found
    state: Path


@pytest.fixture(scope="module")
def alone(sd3_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """Trained once for all tests that give each of three ranks the same number of groups."""
    return train_alone(sd3_folder, tmp_path_factory.mktemp("alone"), GROUPS)


@pytest.fixture(scope="module")
def alone_on_two(sd3_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """The same on two groups alone."""
    return train_alone(sd3_folder, tmp_path_factory.mktemp("alone"), 2)


def train_alone(folder: Path, root: Path, groups: int) -> Alone:
    state = root / "state"
    gang = Gang(
        folder=folder,
        out=root,
        strategy="ddp",
        world=1,
        steps=STEPS,
        groups=groups,
        save=state,
        options=dict(PLAIN),
    )
    found = train(gang, 0)
    assert (found.weights - found.start).abs().max() > 0.01
    return Alone(found=found, state=state)


def moved(found: Found, reference: Found) -> float:
    """How far from those of the reference the weights are, in units of how far it moved them."""
    return float((found.weights - reference.weights).norm() / (reference.weights - reference.start).norm())


def assert_equal_ranks(found: list[Found]) -> None:
    for one in found[1:]:
        assert torch.equal(one.weights, found[0].weights)
        assert torch.equal(one.ema, found[0].ema)
        assert one.norms == found[0].norms
        assert one.buffers == found[0].buffers


def moments(state: Path) -> dict[str, torch.Tensor]:
    """The saved moments of the optimizer, flat, and the number of its steps."""
    saved = torch.load(state / "optimizer.pt", weights_only=True)["optimizer"]["state"]
    return {
        key: torch.cat([saved[index][key].flatten() for index in sorted(saved)])
        for key in ("exp_avg", "exp_avg_sq", "step")
    }


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_make_what_one_makes_whatever_they_share(
    sd3_folder: Path, tmp_path: Path, alone_on_two: Alone, strategy: LearnerStrategy
) -> None:
    alone = alone_on_two
    found = Gang(
        folder=sd3_folder,
        out=tmp_path,
        strategy=strategy,
        world=2,
        steps=STEPS,
        groups=2,
        stumbles=True,
        save=tmp_path / "state",
        options=dict(PLAIN),
    ).run()
    assert_equal_ranks(found)
    first = found[0]
    # Bad numbers on one rank stop both before weights change, and leave nothing behind.
    for one in found:
        ratio, norm = one.errors
        assert "the ratio must be 1, but deviates by 6.39" in ratio
        assert "the gradient norm is nan; the optimizer step after the 1th was not taken" in norm
    assert moved(first, alone.found) < ROUNDING
    assert first.norms == pytest.approx(alone.found.norms, rel=ROUNDING)
    assert first.deviation == 0.0
    assert set(first.dtypes) == {torch.float32}
    assert first.buffers == alone.found.buffers
    share = first.held / alone.found.held
    assert share == 1 if strategy in ("ddp", "zero2") else share < 0.6
    # What they saved is whole: one learner alone goes on from it, and the exported adapter is the same.
    resumed = learners.learner(sd3_folder)
    resumed.load(str(tmp_path / "state"))
    assert torch.equal(learners.weights(resumed), first.weights)
    assert torch.equal(learners.weights(resumed, ema=True), first.ema)
    resumed.load_adapter(str(tmp_path / "state"))
    assert torch.equal(learners.weights(resumed), first.weights)
    expected, saved = moments(alone.state), moments(tmp_path / "state")
    assert torch.equal(saved["step"], expected["step"])
    for key in ("exp_avg", "exp_avg_sq"):
        assert (saved[key] - expected[key]).norm() < ROUNDING * expected[key].norm()
    assert (
        load_file(tmp_path / "state" / "adapter.safetensors").keys()
        == load_file(alone.state / "adapter.safetensors").keys()
    )


def test_ranks_that_loaded_other_tables_of_positions_are_told_so(sd3_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(sd3_folder, other)
    [weights] = (other / "transformer").glob("*.safetensors")
    tensors = load_file(weights)
    tensors["pos_embed.pos_embed"][0, 3, 1] += 1e-3
    save_file(tensors, weights, metadata={"format": "pt"})
    gang = Gang(folder=sd3_folder, out=tmp_path / "out", strategy="ddp", world=2, groups=2, other_folder=other)
    with pytest.raises(
        AssertionError, match=r"the buffer pos_embed\.pos_embed of SD3Transformer2DModel differs between"
    ):
        gang.run()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_learners_that_sample_as_well_train_the_same(
    sd3_folder: Path, tmp_path: Path, alone: Alone, strategy: LearnerStrategy
) -> None:
    gang = Gang(folder=sd3_folder, out=tmp_path, strategy=strategy, world=2, steps=STEPS, options=dict(PLAIN))
    apart, fused = gang.run(), replace(gang, fused=True).run()
    assert_equal_ranks([*apart, *fused])


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_run_of_some_ranks_gives_the_same_bits(
    sd3_folder: Path, tmp_path: Path, alone: Alone, strategy: LearnerStrategy, world: int
) -> None:
    runs = [
        Gang(folder=sd3_folder, out=tmp_path / name, strategy=strategy, world=world, steps=STEPS, options=options).run()
        for name, options in (("a", dict(PLAIN)), ("b", dict(PLAIN)), ("as configured", {}))
    ]
    for found in runs:
        assert_equal_ranks(found)
    assert_equal_ranks([runs[0][0], runs[1][0]])
    assert moved(runs[0][0], alone.found) < ROUNDING
    assert runs[2][0].deviation == 0.0
    if world == 1 and strategy != "zero3":  # whose backward pass rounds differently
        assert torch.equal(runs[0][0].weights, alone.found.weights)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_any_number_of_ranks_goes_on_from_what_one_saved(
    sd3_folder: Path, tmp_path: Path, alone: Alone, strategy: LearnerStrategy, world: int
) -> None:
    options = dict(PLAIN)
    same = Gang(folder=sd3_folder, out=tmp_path, strategy="ddp", world=1, steps=1, load=alone.state, options=options)
    expected = train(same, 0)
    assert torch.equal(expected.start, alone.found.weights)
    found = Gang(
        folder=sd3_folder,
        out=tmp_path,
        strategy=strategy,
        world=world,
        steps=1,
        load=alone.state,
        save=tmp_path / "state",
        options=options,
    ).run()
    assert_equal_ranks(found)
    assert torch.equal(found[0].start, alone.found.weights)
    assert moved(found[0], expected) < ROUNDING
    assert set(moments(tmp_path / "state")["step"].tolist()) == {STEPS + 1}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_checkpointed_activations_change_no_bit(sd3_folder: Path, tmp_path: Path, strategy: LearnerStrategy) -> None:
    kept, recomputed = (
        Gang(
            folder=sd3_folder,
            out=tmp_path / str(flag),
            strategy=strategy,
            world=2,
            options=dict(PLAIN),
            checkpointing=flag,
        ).run()
        for flag in (False, True)
    )
    assert_equal_ranks([*kept, *recomputed])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_adapter_is_float32_on_a_base_that_is_not(
    sd3_folder: Path, tmp_path: Path, strategy: LearnerStrategy
) -> None:
    gang = {"folder": sd3_folder, "dtype": "bfloat16", "steps": 1, "options": dict(PLAIN)}
    alone = train(Gang(**gang, out=tmp_path, strategy="ddp", world=1), 0)
    found = Gang(**gang, out=tmp_path, strategy=strategy, world=2).run()
    assert_equal_ranks(found)
    assert set(found[0].dtypes) == {torch.float32}
    assert found[0].deviation == 0.0
    # The gradients of the micro-batches are the same, and their sum is float32. Not so after a step: what rounds to
    # another bfloat16 on the way is another gradient.
    assert moved(found[0], alone) < ROUNDING
