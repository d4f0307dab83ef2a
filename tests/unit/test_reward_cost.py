"""What rewards are said to take, against the rewards themselves and the sizes that were published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from flowrl.config import ConfigError, RewardSpec
from flowrl.plan import reward_cost as subject
from flowrl.plan.meter import Meter
from flowrl.plan.reward_cost import measure_reward, reward_cost
from flowrl.reward_loading import hollow, make_reward
from flowrl.types import RewardInput, SampleShapes, TextCondition
from tests.unit.test_policy_cost import allocator_rise

REAL = SampleShapes(
    latents=(16, 64, 64), pixels=(3, 512, 512), text=(333, 4096), pooled=2048, text_dtype=torch.bfloat16
)
POCKET = SampleShapes(latents=(16, 8, 8), pixels=(3, 64, 64), text=(28, 96), pooled=80, text_dtype=torch.float32)


def pocket_batch(size: int) -> RewardInput:
    condition = TextCondition(embeds=torch.randn(size, 28, 96), pooled=torch.randn(size, 80))
    return RewardInput(
        prompts=("a large red circle on sand " * 4,) * size,
        seeds=torch.arange(size),
        latents=torch.randn(size, 16, 8, 8),
        condition=condition,
        pixels=torch.rand(size, 3, 64, 64),
    )


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        ("hpsv2", {"path": "/nowhere"}, 986_109_441),
        ("pick_score", {"path": "/nowhere"}, 986_109_441),
        ("clip_score", {"path": "/nowhere"}, 427_616_513),
        ("dina_lrm", {"path": "/nowhere", "base": "/nowhere"}, 1_372_035_843),
        ("hpsv3", {"path": "/nowhere"}, 7_748_610_610),
        ("dit_reward", {"path": "/nowhere"}, 8_060_388_353),
    ],
)
def test_a_reward_that_is_not_here_has_the_published_sizes(name: str, options: dict[str, Any], parameters: int) -> None:
    cost = reward_cost(RewardSpec(name=name, options={**options, "dtype": "bfloat16", "batch_size": 2}), REAL, "cpu")
    assert cost is not None
    assert cost.spread_parameters == parameters
    assert cost.spread_bytes == pytest.approx(2 * parameters, rel=2e-3)  # some heads are float32
    assert cost.flops > 0


@pytest.mark.parametrize("name", ["dit_reward", "hpsv3"])
def test_scoring_takes_what_the_reward_does(name: str) -> None:
    spec = RewardSpec(name=name, options={"batch_size": 4})
    cost = reward_cost(spec, POCKET, "cpu")
    assert cost is not None
    reward, batch = make_reward(spec), pocket_batch(4)
    weights = sum(value.nbytes for value in [*reward.module.parameters(), *reward.module.buffers()])  # type: ignore[attr-defined]
    assert cost.weight_bytes == weights
    meter = Meter()
    with meter.stretch() as work:
        reward(batch)
    assert 4 * cost.flops == pytest.approx(work.flops, rel=0.02)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        reward(batch)
    assert cost.rise == pytest.approx(allocator_rise(profiled), rel=0.1 if name == "hpsv3" else 0.05)


def test_blocks_that_are_alike_need_not_be_computed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = RewardSpec(name="dit_reward", options={"batch_size": 4})

    def measured() -> subject.RewardCost:
        shown = hollow(spec, POCKET)
        assert shown is not None
        return measure_reward("dit_reward", shown)

    short = measured()
    monkeypatch.setattr(subject, "repeat_blocks", lambda network, meter: torch.no_grad())
    assert measured() == short


def test_images_take_encoders_besides() -> None:
    latent, pixels = (
        reward_cost(RewardSpec(name=name, options={}), POCKET, "cpu") for name in ("dit_reward", "dit_reward_pixels")
    )
    assert latent is not None
    assert pixels is not None
    assert pixels.spread_bytes == latent.spread_bytes
    assert pixels.whole_bytes > latent.whole_bytes
    assert pixels.flops > latent.flops


def test_a_reward_on_a_server_takes_nothing_here() -> None:
    cost = reward_cost(RewardSpec(name="http", options={"url": "http://127.0.0.1:1"}), POCKET, "cpu")
    assert cost is not None
    assert (cost.weight_bytes, cost.flops) == (0, 0)


def test_a_reward_that_cannot_tell_says_nothing() -> None:
    assert reward_cost(RewardSpec(name="oracle"), POCKET, "cpu") is None


def test_a_reward_of_other_texts_is_named() -> None:
    with pytest.raises(ConfigError, match=r"rewards: dit_reward cannot score what the run makes, .* \[333, 4096\]"):
        reward_cost(RewardSpec(name="dit_reward"), REAL, "cpu")


def test_what_is_shown_must_be_hollow(tmp_path: Path) -> None:
    spec = RewardSpec(name="tests.unit.test_reward_cost:Lying")
    with pytest.raises(ConfigError, match=r"hollow of .*Lying' must return a flowrl.types.HollowReward, got 3"):
        reward_cost(spec, POCKET, "cpu")


class Lying:
    """A reward whose `hollow` is no network."""

    def __init__(self, device: str) -> None: ...

    @staticmethod
    def hollow() -> Any:
        return 3
