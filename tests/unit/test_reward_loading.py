"""What a reward says of its training, held against what it will be given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from flowrl.base.empty_module import is_empty
from flowrl.base.errors import CheckpointError, UserError
from flowrl.config import ConfigError, RewardSpec
from flowrl.reward_loading import LatentSource, check_rewards, files_of, make_reward, preflight
from flowrl.reward_protocols import NeededFiles, StreamedReward
from flowrl.types import TrainedOn
from tests.cheap_rewards import LATENT, LatentNorm

NAME = "tests.unit.test_reward_loading:Trained"


class Trained(LatentNorm):
    """Says that it was trained on texts of 28 tokens, or whatever its option says."""

    def __init__(self, device: str = "cpu", tokens: int = 28) -> None:
        super().__init__(device=device)

    @staticmethod
    def preflight(tokens: int) -> TrainedOn | None:
        """Nothing is looked at."""
        if tokens < 0:
            raise ValueError(f"tokens must be at least 0, got {tokens}")
        return TrainedOn(latent_space="vae4x8", text_length=tokens)


class Outdated(LatentNorm):
    """Says what it reads in another way than rewards do."""

    @staticmethod
    def preflight() -> str:
        """The name alone."""
        return "vae4x8"


class Curious(LatentNorm):
    """Wants to know what it is not made with."""

    @staticmethod
    def preflight(colour: str) -> None:
        """Never called."""


class Particular(LatentNorm):
    """Refuses its option only when it is made, in one way or the other."""

    def __init__(self, device: str = "cpu", error: str = "") -> None:
        super().__init__(device=device)
        if error:
            raise CheckpointError(error) if error.endswith("torn") else ValueError(error)


def source(text_length: int, max_sequence_length: int = 0, folder: str = "") -> LatentSource:
    key = "" if folder else "model.max_sequence_length"
    return LatentSource(
        latent_space="vae4x8",
        text_length=text_length,
        max_sequence_length=max_sequence_length,
        key=key,
        folder=folder,
    )


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (source(33, 19), "but gets 33 with model.max_sequence_length 19; set model.max_sequence_length to 14$"),
        (source(77 + 19, 19), "but gets 96 with model.max_sequence_length 19; use another reward$"),
        (source(33, folder="/sets/mine"), "but gets 33 of /sets/mine; prepare the set again with the max_seq"),
    ],
)
def test_another_text_length_is_refused_with_what_to_do(given: LatentSource, says: str) -> None:
    with pytest.raises(ConfigError, match=rf"^rewards: '{NAME}' was trained on texts of 28 tokens, {says}"):
        check_rewards([RewardSpec(name=NAME)], [given], "cpu")


@pytest.mark.parametrize(("tokens", "given"), [(28, 28), (0, 33), (28, 0)])
def test_what_is_equal_or_not_known_passes_and_is_told_by_label(tokens: int, given: int) -> None:
    specs = [RewardSpec(name=NAME, label="mine", options={"tokens": tokens}), RewardSpec(name="oracle")]
    expected = {"mine": TrainedOn(latent_space="vae4x8", text_length=tokens)}
    assert check_rewards(specs, [source(given)], "cpu") == expected


def test_a_preflight_that_returns_something_else_is_named() -> None:
    name = NAME.replace("Trained", "Outdated")
    with pytest.raises(ConfigError, match=rf"preflight of '{name}' must return a flowrl.types.TrainedOn, .* 'vae4x8'"):
        check_rewards([RewardSpec(name=name)], [source(28)], "cpu")


def test_a_preflight_gets_what_the_constructor_would_get_defaults_included() -> None:
    assert preflight(RewardSpec(name=NAME)) == TrainedOn(latent_space="vae4x8", text_length=28)
    assert preflight(RewardSpec(name=NAME, options={"tokens": 5})) == TrainedOn(latent_space="vae4x8", text_length=5)
    name = NAME.replace("Trained", "Curious")
    with pytest.raises(ConfigError, match=rf"preflight of '{name}' asks for colour, which its constructor lacks"):
        preflight(RewardSpec(name=name))


class Unmakeable(Trained):
    """Whose constructor must not be reached."""

    def __init__(self, device: str = "cpu", tokens: int = 28) -> None:
        raise AssertionError("made before its preflight")


def test_rewards_are_checked_without_being_made() -> None:
    name = NAME.replace("Trained", "Unmakeable")
    with pytest.raises(ConfigError, match=r"tokens must be at least 0, got -1$"):
        check_rewards([RewardSpec(name=name, options={"tokens": -1})], [source(28)], "cpu")


def test_an_option_that_a_reward_refuses_is_one_line_wherever_it_is_found() -> None:
    says = rf"^rewards: the options \{{'tokens': -1\}} do not fit reward '{NAME}': tokens must be at least 0, got -1$"
    with pytest.raises(ConfigError, match=says):
        preflight(RewardSpec(name=NAME, options={"tokens": -1}))
    name = NAME.replace("Trained", "Particular")
    with pytest.raises(ConfigError, match=rf"do not fit reward '{name}': not so$"):
        make_reward(RewardSpec(name=name, options={"error": "not so"}))
    with pytest.raises(CheckpointError, match=r"^weights: torn$"):
        make_reward(RewardSpec(name=name, options={"error": "weights: torn"}))


def test_a_reward_that_can_be_is_made_empty_for_a_gang_and_by_no_option() -> None:
    for name in ("dit_reward", "dit_reward_pixels", "hpsv3"):
        spec = RewardSpec(name=name)
        made = make_reward(spec, empty=True)
        assert isinstance(made, StreamedReward)
        assert is_empty(made.module)
        whole = make_reward(spec)
        assert isinstance(whole, StreamedReward)
        weights = dict(made.read_weights())
        assert weights.keys() == whole.module.state_dict().keys()
        assert all(torch.equal(value, weights[key]) for key, value in whole.module.state_dict().items())
        with pytest.raises(ConfigError, match=rf"^rewards: '{name}' takes no option empty"):
            make_reward(RewardSpec(name=name, options={"empty": True}))
    assert not isinstance(make_reward(RewardSpec(name=LATENT), empty=True), StreamedReward)


class Faulty(LatentNorm):
    """Fails to be made, in the way that its option says."""

    def __init__(self, device: str = "cpu", kind: str = "") -> None:
        super().__init__(device=device)
        self.device = device
        known = {"key": KeyError("colour"), "type": TypeError(), "file": FileNotFoundError(2, "No such file", "a.txt")}
        if error := (known | {"exit": SystemExit(0)}).get(kind):
            raise error


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("key", "KeyError: 'colour'"),
        ("type", "TypeError"),
        ("file", r"FileNotFoundError: \[Errno 2\] No such file: 'a.txt'"),
        ("exit", "SystemExit: 0"),
    ],
)
def test_whatever_a_constructor_raises_is_one_line_that_names_the_reward(kind: str, says: str) -> None:
    name = NAME.replace("Trained", "Faulty")
    with pytest.raises(
        ConfigError, match=rf"^rewards: reward '{name}' cannot be made with the options .*'{kind}'.: {says}$"
    ):
        make_reward(RewardSpec(name=name, options={"kind": kind}))


def test_a_device_option_is_one_of_those_of_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    name = NAME.replace("Trained", "Faulty")
    assert vars(make_reward(RewardSpec(name=name, options={"device": "auto"})))["device"] == "cpu"
    for odd in ("gpu", "cuda:3", 0):
        spec = RewardSpec(name=name, options={"device": odd})
        with pytest.raises(UserError, match=rf"^rewards: device of '{name}' must be auto, cpu or cuda, got {odd!r}$"):
            preflight(spec)
    with pytest.raises(UserError, match=rf"^rewards: device of '{name}' is cuda, but torch .* finds no GPU"):
        make_reward(RewardSpec(name=name, options={"device": "cuda"}))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 0}, "batch_size of 'hpsv3' must be a whole number of at least 1, got 0"),
        ({"batch_size": 2.5}, "batch_size of 'hpsv3' must be a whole number of at least 1, got 2.5"),
        ({"batch_size": True}, "batch_size of 'hpsv3' must be a whole number of at least 1, got True"),
        ({"dtype": "fp16"}, "dtype of 'hpsv3' must be one of float32, bfloat16, float16, got 'fp16'"),
        ({"dtype": ["float32"]}, "dtype of 'hpsv3' must be one of .*, got .'float32'.$"),
    ],
)
def test_what_means_the_same_in_all_rewards_is_held_to_it_before_anything_is_loaded(
    options: dict[str, Any], says: str
) -> None:
    spec = RewardSpec(name="hpsv3", options=options)
    for ask in (preflight, make_reward):
        with pytest.raises(ConfigError, match=f"^rewards: {says}"):
            ask(spec)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (LatentSource(latent_space="vae4"), "the policy makes latents of vae4; use a reward trained in that"),
        (LatentSource(latent_space="vae4", folder="/sets/mine"), "/sets/mine holds latents of vae4; use a reward"),
        (LatentSource(latent_space=None, folder="/sets/mine"), "/sets/mine holds none; prepare the set with latents"),
        (LatentSource(latent_space=None, key="encoders.path"), "encoders.path is not set; name the policy's encoders"),
    ],
)
def test_latents_that_a_reward_cannot_read_or_that_there_are_none_of_are_named(given: LatentSource, says: str) -> None:
    with pytest.raises(ConfigError, match=rf"^rewards: '{NAME}' reads latents of vae4x8, but {says}"):
        check_rewards([RewardSpec(name=NAME)], [given], "cpu")


class Reader(LatentNorm):
    """Says which folder it reads, or nothing that says it."""

    def __init__(self, weights: str = "models/mine", device: str = "cpu") -> None:
        super().__init__(device=device)

    @staticmethod
    def needs(weights: str, policy: str) -> tuple[NeededFiles, ...] | list[str]:
        """A folder for each policy."""
        return (NeededFiles(option="weights", path=Path(weights, policy)),) if weights else ["models/mine"]


def test_a_reward_names_its_files_by_its_options_and_the_policy() -> None:
    name = NAME.replace("Trained", "Reader")
    assert files_of(RewardSpec(name=name), "sd35") == (NeededFiles(option="weights", path=Path("models/mine/sd35")),)
    (files,) = files_of(RewardSpec(name=name, options={"weights": "elsewhere"}), "sd35")
    assert files.path == Path("elsewhere/sd35")
    assert files_of(RewardSpec(name=NAME)) == ()
    with pytest.raises(
        ConfigError, match=rf"^rewards: needs of '{name}' must return a tuple of .*NeededFiles, got \['"
    ):
        files_of(RewardSpec(name=name, options={"weights": ""}))
