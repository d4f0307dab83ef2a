"""The checks of a reward: each finds the fault that it is for, and the commands that use them."""

from __future__ import annotations

import random
import re
from importlib.metadata import EntryPoint
from typing import Any, Literal

import numpy as np
import pytest
import torch

from flowrl import cli
from flowrl.base.embedded import embedded
from flowrl.base.errors import UserError
from flowrl.config import ConfigError, RewardSpec
from flowrl.pocket.reward_inputs import TextShape, latent_batch, pixel_batch
from flowrl.reward_check import CONTRACT, MEASUREMENTS, Trial, members, run_contract
from flowrl.reward_loading import make_reward
from flowrl.types import RewardInput
from tests.cheap_rewards import TINY_SPACE


class Sound:
    """A reward without a fault: the mean of the pixels."""

    name = "sound"
    input_kind: Literal["latent", "pixel"] = "pixel"
    latent_space: str | None = None
    batch_size = 3

    def __init__(self, device: str = "cpu", sign: float = 1.0) -> None:
        self.calls = 0
        self.sign = sign

    def __call__(self, batch: RewardInput) -> torch.Tensor:
        if batch.pixels is None:
            raise ValueError("sound scores images: the batch must hold pixels")
        self.calls += 1
        return self.sign * self.score(batch, batch.pixels)

    def score(self, batch: RewardInput, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.mean((1, 2, 3))


class SoundLatent(Sound):
    """The same on latents, with a gradient."""

    input_kind = "latent"
    latent_space = "vae4x8"

    def __call__(self, batch: RewardInput) -> torch.Tensor:
        if batch.latents is None or batch.condition is None:
            raise ValueError("sound scores latents: the batch must hold latents and their text condition")
        return batch.latents.square().mean((1, 2, 3)) + batch.condition.pooled.mean(1)


class Scalar(Sound):
    def score(self, batch: RewardInput, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.mean()


class Doubles(Sound):
    def score(self, batch: RewardInput, pixels: torch.Tensor) -> torch.Tensor:
        return super().score(batch, pixels).double()


class Infinite(Sound):
    def score(self, batch: RewardInput, pixels: torch.Tensor) -> torch.Tensor:
        return super().score(batch, pixels).where(batch.seeds != 101, torch.inf)


class Drifts(Sound):
    def score(self, batch: RewardInput, pixels: torch.Tensor) -> torch.Tensor:
        return super().score(batch, pixels) + self.calls * 1e-6


class DrawsTorch(Sound):
    def score(self, batch: RewardInput, pixels: torch.Tensor) -> torch.Tensor:
        return super().score(batch, pixels) + 0 * torch.rand(1)


class DrawsNumpy(Sound):
    def score(self, batch: RewardInput, pixels: torch.Tensor) -> torch.Tensor:
        return super().score(batch, pixels) + 0 * float(np.random.rand())


class DrawsPython(Sound):
    def score(self, batch: RewardInput, pixels: torch.Tensor) -> torch.Tensor:
        return super().score(batch, pixels) + 0 * random.random()


class InPlace(Sound):
    def score(self, batch: RewardInput, pixels: torch.Tensor) -> torch.Tensor:
        return super().score(batch, pixels.mul_(2).sub_(1))


class Sorted(Sound):
    def score(self, batch: RewardInput, pixels: torch.Tensor) -> torch.Tensor:
        return super().score(batch, pixels).sort().values


class Relative(Sound):
    def score(self, batch: RewardInput, pixels: torch.Tensor) -> torch.Tensor:
        scores = super().score(batch, pixels)
        return scores - scores.mean()


class Careless(Sound):
    def __call__(self, batch: RewardInput) -> torch.Tensor:
        return batch.pixels.mean((1, 2, 3))  # type: ignore[union-attr]


class Indifferent(Sound):
    def __call__(self, batch: RewardInput) -> torch.Tensor:
        return torch.zeros(len(batch.prompts)) if batch.pixels is None else super().__call__(batch)


class Constant(Sound):
    def score(self, batch: RewardInput, pixels: torch.Tensor) -> torch.Tensor:
        return 0 * super().score(batch, pixels)


class Lost(Sound):
    def score(self, batch: RewardInput, pixels: torch.Tensor) -> torch.Tensor:
        return float("nan") * super().score(batch, pixels)


class Imaginary(Sound):
    def score(self, batch: RewardInput, pixels: torch.Tensor) -> torch.Tensor:
        return 1j * super().score(batch, pixels)


FAULTS: dict[type[Sound], dict[str, str]] = {
    Sound: {},
    Scalar: {"shape": "[], must be [4]"},
    Doubles: {"dtype": "torch.float64, must be torch.float32; end with .float()"},
    Infinite: {"finite": "3 of 4 scores"},
    Drifts: {"determinism": "scores differ by "},
    DrawsTorch: {"determinism": "draws from the global generator of torch; make one from batch.seeds"},
    DrawsNumpy: {"determinism": "draws from the global generator of numpy; "},
    DrawsPython: {"determinism": "draws from the global generator of random; "},
    InPlace: {"input": "changes pixels in place"},
    Sorted: {"order": "scores differ by ", "batch split": "scores differ by "},
    Relative: {"batch split": "scores differ by "},
    Constant: {"tells apart": "4 samples, distinct scores: 1"},
    Lost: {"finite": "0 of 4 scores", "tells apart": "4 samples, distinct scores: 0"},
    Imaginary: {"shape": "TypeError: scores must be real floating-point numbers, got torch.complex64"},
    Careless: {"other input": "a batch with latents: AttributeError; raise a ValueError that says what is missing"},
    Indifferent: {"other input": "a batch with latents gets scores; raise a ValueError"},
}


@pytest.mark.parametrize(("kind", "faults"), FAULTS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_each_check_finds_its_fault_and_no_other(kind: type[Sound], faults: dict[str, str]) -> None:
    findings = dict(run_contract(Trial(reward=kind(), batch=pixel_batch())))
    assert {name for name, one in findings.items() if one.verdict == "FAIL"} == faults.keys()
    for name, says in faults.items():
        assert findings[name].found.startswith(says)
    assert list(findings) == (["shape"] if "shape" in faults else [*CONTRACT, *MEASUREMENTS])


def test_what_cannot_be_failed_is_measured() -> None:
    trial = Trial(reward=SoundLatent(), batch=latent_batch("vae4x8"))
    findings = dict(run_contract(trial))
    measured = {name: one.found for name, one in findings.items() if one.verdict == "info"}
    scores = trial.scores()
    assert measured.keys() == {"scores", "gradient", "cost"}
    assert measured["scores"] == f"{scores.min():.4g} to {scores.max():.4g}"
    slopes = (trial.batch.latents * 2 / (4 * 8 * 8)).flatten(1).norm(dim=1)  # type: ignore[operator]
    assert measured["gradient"] == f"with respect to the latents, norm {slopes.min():.3g} to {slopes.max():.3g}"
    assert re.search(r"ms per image, 3 in one call; peak memory of the process [\d.,]+ [MG]B", measured["cost"])


class Raises(Sound):
    def score(self, batch: RewardInput, pixels: torch.Tensor) -> torch.Tensor:
        raise self.error

    error: BaseException = RuntimeError("a\ndefect")


def test_an_error_is_a_finding_and_only_a_defect_has_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    trial = Trial(reward=Raises(), batch=pixel_batch())
    assert [(name, one.found) for name, one in run_contract(trial)] == [("shape", "RuntimeError: a defect")]
    assert "raise self.error" in caplog.text
    Raises.error = SystemExit(0)
    assert [one.found for _, one in run_contract(trial)] == ["SystemExit: 0"]
    caplog.clear()
    Raises.error = ValueError("not my world")
    assert [one.found for _, one in run_contract(trial)] == ["refuses its batch: not my world"]
    assert caplog.text == ""


def test_the_tolerance_is_that_of_the_trial() -> None:
    class Nearly(Sound):
        def score(self, batch: RewardInput, pixels: torch.Tensor) -> torch.Tensor:
            return super().score(batch, pixels) + 0.01 * len(pixels)

    for tolerance, verdict in ((1e-4, "FAIL"), (0.1, "ok")):
        trial = Trial(reward=Nearly(), batch=pixel_batch(), tolerance=tolerance)
        assert CONTRACT["batch split"](trial).verdict == verdict


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": ""}, "name must be a text that is not empty, got ''"),
        ({"input_kind": "image"}, "input_kind must be 'latent' or 'pixel', got 'image'"),
        ({"latent_space": "vae4x8"}, "latent_space of a pixel reward must be None, got 'vae4x8'"),
        ({"input_kind": "latent"}, "latent_space must be a name such as 'vae16x8-scale1.5305-shift0.0609', got None"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"name": 3, "batch_size": 1.5}, "name must be a text that is not empty, got 3; batch_size must be an integer"),
    ],
)
def test_members_are_of_the_right_kind(changes: dict[str, Any], says: str) -> None:
    wrong = type("Wrong", (Sound,), changes)()
    assert members(Sound()).found == "'sound' reads pixels, 3 samples in one call"
    assert members(wrong).verdict == "FAIL"
    assert members(wrong).found.startswith(says)


def test_missing_members_are_named() -> None:
    found = members(object()).found
    assert found.startswith("name, input_kind, latent_space, batch_size, __call__ missing")


def test_inputs_of_other_spaces_and_sizes_are_noise_of_the_right_shape() -> None:
    text = TextShape(length=5, width=6, pooled=7)
    batch = latent_batch("vae4x16-scale1-shift0", 128, text)
    assert batch.latents is not None
    assert batch.condition is not None
    assert batch.latents.shape == (4, 4, 8, 8)
    assert batch.condition.embeds.shape == (4, 5, 6)
    assert batch.condition.pooled.shape == (4, 7)
    assert torch.equal(batch.latents, latent_batch("vae4x16-scale1-shift0", 128, text).latents)  # type: ignore[arg-type]
    assert not torch.equal(batch.latents[0], batch.latents[1])
    large, small = pixel_batch(128).pixels, pixel_batch().pixels
    assert large is not None
    assert small is not None
    assert large.shape == (4, 3, 128, 128)
    assert torch.equal(large[:, :, ::2, 1::2], small)
    with pytest.raises(UserError, match="the latent space 'mine' does not say how many channels"):
        latent_batch("mine")
    with pytest.raises(UserError, match="the image size must be a multiple of 64, got 100"):
        pixel_batch(100)


def test_rows_are_taken_of_all_that_belongs_to_a_sample() -> None:
    batch = latent_batch(TINY_SPACE)
    part = batch.take([3, 0])
    assert part.prompts == (batch.prompts[3], batch.prompts[0])
    assert part.seeds.tolist() == [103, 100]
    assert part.latents is not None
    assert batch.latents is not None
    assert part.condition is not None
    assert batch.condition is not None
    assert torch.equal(part.latents[1], batch.latents[0])
    assert torch.equal(part.condition.embeds[0], batch.condition.embeds[3])
    assert torch.equal(part.condition.pooled[1], batch.condition.pooled[0])


def test_a_reward_is_made_with_its_options_or_says_that_they_do_not_fit() -> None:
    path = f"{__name__}:Sound"
    assert vars(make_reward(RewardSpec(name=path, options={"sign": -1.0})))["sign"] == -1.0
    with pytest.raises(ConfigError, match=r"the options \{'sing': 1\} do not fit reward .*: got an unexpected keyword"):
        make_reward(RewardSpec(name=path, options={"sing": 1}))


def test_check_prints_a_line_for_each_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["reward", "check", f"{__name__}:Sound", "sign=-1e-1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "ok    members      'sound' reads pixels, 3 samples in one call"
    assert [line[6:19].strip() for line in lines[2:-1]] == [*CONTRACT, *MEASUREMENTS]
    scores = -0.1 * Sound()(pixel_batch())
    assert f"info  scores       {scores.min():.4g} to {scores.max():.4g}" in lines
    assert lines[-1] == "a good reward"


@pytest.mark.parametrize(
    ("words", "failed", "line"),
    [
        ([f"{__name__}:Relative"], "1 of 10 checks failed", "FAIL  batch split  scores differ by "),
        ([f"{__name__}:Scalar"], "1 of 2 checks failed", "FAIL  shape        [], must be [4]"),
        (
            ["dit_reward", "--image-size", "128", "--text", "5x96x80"],
            "1 of 2 checks failed",
            "FAIL  shape        refus",
        ),
    ],
)
def test_a_failed_check_is_exit_code_1(
    words: list[str], failed: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["reward", "check", *words]) == 1
    out = capsys.readouterr().out
    assert line in out
    assert failed in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["check", "dit_rewrad"], "reward: unknown reward 'dit_rewrad'; did you mean 'dit_reward'?"),
        (["check", "oracle", "part"], "an option of a reward must read key=value, such as batch_size=8, got 'part'"),
        (["check", "oracle", "part=[a"], "part: the value '[a' is not valid YAML; put it in quotes"),
        (["check", "dit_reward", "--text", "5x6"], "--text must be LxDxP, such as 333x4096x2048, got '5x6'"),
        (
            ["check", f"{__name__}:Narrow", "--text", "5x6x7"],
            f"--text 5x6x7: must be the shape of the texts that the reward reads: reward 'narrow' ({__name__}:Narrow) "
            "fails on a batch of latents [4, 16, 8, 8], embeds [4, 5, 6], pooled [4, 7]: RuntimeError: mat1 and mat2",
        ),
        (["check", "dit_reward", "device=gpu"], "rewards: device of 'dit_reward' must be auto, cpu or cuda, got 'gpu'"),
        (["check", "dit_reward", "device=cuda:3"], "rewards: device of 'dit_reward' must be auto, cpu or cuda, got"),
        (["check", "dit_reward", "path=3"], "rewards: path of 'dit_reward' must be a text, got 3; put it in quotes"),
        (["check", "dit_reward", "path="], "rewards: path of 'dit_reward' must be a text, got None; put it in quotes"),
        (["check", "dit_reward", "path=''"], "rewards: path of 'dit_reward' must not be empty; name a checkpoint, or"),
        (["check", "dit_reward", "path=nowhere"], "nowhere: no such folder; give a dit_reward checkpoint folder"),
        (
            ["check", "hpsv3", "--image-size", "65"],
            "--image-size must be a multiple of 64, the size of the images that",
        ),
        (
            ["check", "dit_reward", "--image-size", "7"],
            "--image-size must be a multiple of 16, the pixels of one token",
        ),
        (
            ["check", "dit_reward", "--image-size", "0"],
            "--image-size must be a multiple of 16, the pixels of one token",
        ),
        (["check", "dit_reward", "base=x"], f"{embedded('dit_reward')}: holds its own backbone; leave the option base"),
        (["check", "oracle", "--image-size", "65"], "--image-size must be a multiple of 64, the size of the images"),
        (["serve", "oracle", "--host", "0.0.0.0"], "reward serve: --host 0.0.0.0 can be reached from other machines"),
        (["serve", "oracle", "--max-mib", "0"], "reward serve: --max-mib must be at least 1, got 0"),
        (["serve", "oracle", "--port", "99999"], "reward serve: cannot listen on 127.0.0.1:99999: "),
        (["serve", f"{__name__}:Nothing"], f"reward serve: {__name__}:Nothing is no reward: name, input_kind"),
    ],
)
def test_wrong_words_are_one_line_and_exit_code_2(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["reward", *words]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"flowrl: error: {says}")
    assert errors.count("\n") == 1


class Narrow:
    name = "narrow"
    input_kind: Literal["latent", "pixel"] = "latent"
    latent_space: str | None = TINY_SPACE
    batch_size = 2

    def __init__(self, device: str) -> None:
        self.weight = torch.ones(96, 1)

    def __call__(self, batch: RewardInput) -> torch.Tensor:
        assert batch.condition is not None
        return (batch.condition.embeds[:, 0] @ self.weight).flatten()


class Nothing:
    def __init__(self, device: str) -> None:
        pass


@pytest.mark.parametrize("verb", ["reward check", "reward serve", "reward list"])
def test_every_verb_explains_itself_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([*verb.split(), "--help"])
    text = capsys.readouterr().out
    assert text.startswith(f"usage: flowrl {verb}")
    assert f"example:\n  flowrl {verb}" in text


def test_list_names_every_reward_with_its_kind_and_source(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    offered = [
        EntryPoint(name="sound", value=f"{__name__}:Sound", group="flowrl.rewards"),
        EntryPoint(name="gone", value="not_installed:Reward", group="flowrl.rewards"),
        EntryPoint(name="oracle", value=f"{__name__}:Sound", group="flowrl.rewards"),
    ]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: offered)
    monkeypatch.setattr("flowrl.registry.entry_points", lambda group: offered)
    assert cli.main(["reward", "list"]) == 0
    rows = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    assert ["dit_reward", "latent", "built in"] in rows
    assert ["hpsv3", "pixel", "built in"] in rows
    assert ["sound", "pixel", "entry point of an installed package"] in rows
    assert [row[0] for row in rows].count("oracle") == 1
    assert rows[-1][:2] == ["gone", "broken"]
    assert cli.main(["reward", "list", "--names"]) == 0
    assert capsys.readouterr().out.split() == [row[0] for row in rows]
