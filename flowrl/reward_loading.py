"""Makes the rewards that a configuration names, and finds out beforehand whether that will work."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowrl.base.devices import pick_device
from flowrl.base.dtypes import DTYPES
from flowrl.base.errors import UserError
from flowrl.config import ConfigError, RewardSpec
from flowrl.protocols import PolicyFamily
from flowrl.registry import resolve
from flowrl.reward_call import reason
from flowrl.reward_protocols import CheckableReward, FetchableReward, MeasurableReward, NeededFiles, Reward
from flowrl.types import HollowReward, SampleShapes, TrainedOn


@dataclass(frozen=True, kw_only=True)
class LatentSource:
    """Where the latents and text conditions come from that latent rewards read.

    Example: ``LatentSource(latent_space="vae16x8-scale1.5305-shift0.0609", text_length=333, max_sequence_length=256,
    key="model.max_sequence_length")``
    """

    latent_space: str | None  # None: there are no latents
    text_length: int = 0  # tokens of a text condition; 0: not known
    max_sequence_length: int = 0  # T5 tokens of it
    key: str = ""  # what sets them; where there are no latents, what would name the encoders that make them
    folder: str = ""  # of a prepared set, whose texts were encoded before; empty: a policy

    @classmethod
    def of_policy(cls, family: PolicyFamily, path: Path, max_sequence_length: int, *, key: str) -> LatentSource:
        """A policy and its encoders in a folder, the T5 tokens of which are set by `key`."""
        return cls(
            latent_space=family.latent_space(path),
            text_length=family.text_length(path, max_sequence_length),
            max_sequence_length=max_sequence_length,
            key=key,
        )


def check_rewards(specs: Sequence[RewardSpec], sources: Sequence[LatentSource], device: str) -> dict[str, TrainedOn]:
    """What the latent rewards among these were trained on, by what metrics call them, as far as they say it.

    Raises ConfigError, or what the reward's own preflight raises, when one cannot be made or cannot read what one of
    the sources gives. A reward without a preflight is found wanting only when it is made.
    """
    found = {}
    for spec in specs:
        trained = preflight(spec, device)
        if trained is None:
            continue
        for source in sources:
            check_latent_space(spec.name, trained.latent_space, source)
            _check_text_length(spec.name, trained.text_length, source)
        found[spec.metric_name] = trained
    return found


def preflight(spec: RewardSpec, device: str = "cpu") -> TrainedOn | None:
    """What a latent reward says it was trained on, before it is made; None for a pixel reward, and for one that says
    nothing. Raises ConfigError, or what the reward's own preflight raises, when it cannot be made.
    """
    factory, bound = _bind(spec, device)
    if not isinstance(factory, CheckableReward):
        return None
    trained = _ask(spec, factory.preflight, {**bound.arguments, **bound.kwargs}, "preflight")
    if trained is not None and not isinstance(trained, TrainedOn):
        raise ConfigError(
            f"rewards: preflight of {spec.name!r} must return a flowrl.types.TrainedOn, or None for a pixel reward, "
            f"got {trained!r}"
        )
    return trained


def hollow(spec: RewardSpec, shapes: SampleShapes, device: str = "cpu") -> HollowReward | None:
    """A reward without weights and numbers, for samples of these shapes; None when its class cannot show it.

    Raises ConfigError, or what the class itself raises, when its options do not fit.
    """
    factory, bound = _bind(spec, device)
    if not isinstance(factory, MeasurableReward):
        return None
    shown = _ask(spec, factory.hollow, {**bound.arguments, **bound.kwargs, "shapes": shapes}, "hollow")
    if not isinstance(shown, HollowReward):
        raise ConfigError(f"rewards: hollow of {spec.name!r} must return a flowrl.types.HollowReward, got {shown!r}")
    return shown


def files_of(spec: RewardSpec, policy: str = "") -> tuple[NeededFiles, ...]:
    """The folders and files that a reward reads, there or not; none where its class does not name them.

    `policy` is the name of the folder of the run's policy. Raises ConfigError, or what the class itself raises, when
    the options of the reward do not fit.
    """
    factory, bound = _bind(spec, "cpu")
    if not isinstance(factory, FetchableReward):
        return ()
    found = _ask(spec, factory.needs, {**bound.arguments, **bound.kwargs, "policy": policy}, "needs")
    if not isinstance(found, tuple) or not all(isinstance(one, NeededFiles) for one in found):
        raise ConfigError(
            f"rewards: needs of {spec.name!r} must return a tuple of flowrl.reward_protocols.NeededFiles, got {found!r}"
        )
    return found


def _ask(spec: RewardSpec, method: Callable[..., object], given: dict[str, Any], name: str) -> object:
    """What a static method of a reward's class says of what it asks for among the constructor's arguments."""
    asked = inspect.signature(method).parameters
    if unknown := asked.keys() - given.keys():
        raise ConfigError(
            f"rewards: {name} of {spec.name!r} asks for {', '.join(sorted(unknown))}, which its constructor lacks; "
            "name parameters of the constructor alone"
        )
    with _named(spec):
        return method(**{key: given[key] for key in asked})


def make_reward(spec: RewardSpec, device: str = "cpu", *, empty: bool = False) -> Reward:
    """Make one reward for no policy in particular; raises ConfigError when its options do not fit.

    With `empty` a `flowrl.reward_protocols.StreamedReward` is made without its weights; others have no such choice. Its
    preflight is left to the caller, who has most often run it before.
    """
    factory, bound = _bind(spec, device)
    if empty and _can_be_empty(factory):
        bound.arguments["empty"] = True
    if bound.arguments.get("device") == "cuda":
        pick_device("cuda", key=_device_key(spec))
    with _named(spec):
        reward: Reward = factory(*bound.args, **bound.kwargs)
    return reward


def load_reward(spec: RewardSpec, policy_space: str, device: str, *, empty: bool = False) -> Reward:
    """Make one reward, as `make_reward` does; raises ConfigError when its options do not fit, or when it reads other
    latents."""
    reward = make_reward(spec, device, empty=empty)
    check_made(spec.name, reward, LatentSource(latent_space=policy_space))
    return reward


def check_made(name: str, reward: Reward, source: LatentSource) -> None:
    """Raise ConfigError when a reward that is made reads latents, and others than a source's."""
    if reward.input_kind == "latent":
        check_latent_space(name, reward.latent_space, source)


def check_latent_space(name: str, reward_space: str | None, source: LatentSource) -> None:
    """Raise ConfigError when a latent reward cannot read a source's latents."""
    space = source.latent_space
    if reward_space in (None, space):
        return
    said = f"rewards: {name!r} reads latents of {reward_space}, but"
    if space is not None:
        maker = f"{source.folder} holds" if source.folder else "the policy makes"
        raise ConfigError(
            f"{said} {maker} latents of {space}",
            advice="use a reward trained in that latent space, or a pixel reward",
        )
    if source.folder:
        raise ConfigError(
            f"{said} {source.folder} holds none", advice="prepare the set with latents, or use a pixel reward"
        )
    raise ConfigError(
        f"{said} {source.key} is not set", advice="name the policy's encoders there, or use a pixel reward"
    )


def _check_text_length(name: str, tokens: int, source: LatentSource) -> None:
    """Raise ConfigError when a latent reward was trained on other text lengths than the source gives."""
    if 0 in (tokens, source.text_length) or tokens == source.text_length:
        return
    said = f"rewards: {name!r} was trained on texts of {tokens} tokens, but gets {source.text_length}"
    if source.folder:
        raise ConfigError(
            f"{said} of {source.folder}",
            advice="prepare the set again with the max_sequence_length of the reward's training",
        )
    right = source.max_sequence_length + tokens - source.text_length
    advice = f"set {source.key} to {right}" if right > 0 else "use another reward"
    raise ConfigError(f"{said} with {source.key} {source.max_sequence_length}", advice=advice)


def _bind(spec: RewardSpec, device: str) -> tuple[Any, inspect.BoundArguments]:
    """The class of a reward and the arguments to make it with, its defaults among them.

    Raises ConfigError when they do not fit, or when one that means the same in all rewards has no value of its kind.
    """
    factory, options = resolve("reward", spec.name)
    if "empty" in spec.options and _can_be_empty(factory):
        raise ConfigError(f"rewards: {spec.name!r} takes no option empty; its scorers decide how it gets its weights")
    given = {"device": device, **options, **spec.options}
    try:
        bound = inspect.signature(factory).bind(**given)
    except TypeError as error:
        raise ConfigError(f"rewards: the options {spec.options} do not fit reward {spec.name!r}: {error}") from None
    size, dtype = given.get("batch_size", 1), given.get("dtype", "float32")
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ConfigError(f"rewards: batch_size of {spec.name!r} must be a whole number of at least 1, got {size!r}")
    if dtype not in tuple(DTYPES):
        raise ConfigError(f"rewards: dtype of {spec.name!r} must be one of {', '.join(DTYPES)}, got {dtype!r}")
    bound.apply_defaults()
    if bound.arguments.get("device", "cuda") != "cuda":  # whether there is a GPU matters where the reward is made
        bound.arguments["device"] = pick_device(bound.arguments["device"], key=_device_key(spec))
    _check_texts(spec, inspect.signature(factory))
    return factory, bound


def _can_be_empty(factory: Any) -> bool:
    """Whether the class of a reward is that of a `flowrl.reward_protocols.StreamedReward`."""
    return hasattr(factory, "read_weights") and "empty" in inspect.signature(factory).parameters


def _device_key(spec: RewardSpec) -> str:
    return f"rewards: device of {spec.name!r}"


def _check_texts(spec: RewardSpec, signature: inspect.Signature) -> None:
    """Raise ConfigError when an option that the constructor has as a text is something else, or the path is empty."""
    for key, value in spec.options.items():
        parameter = signature.parameters.get(key)
        if parameter is None or parameter.annotation not in (str, "str"):
            continue
        if not isinstance(value, str | Path):
            raise ConfigError(
                f"rewards: {key} of {spec.name!r} must be a text, got {value!r}", advice="put it in quotes"
            )
        if key == "path" and value == "":
            raise ConfigError(f"rewards: path of {spec.name!r} must not be empty; name a checkpoint, or leave it out")


@contextmanager
def _named(spec: RewardSpec) -> Iterator[None]:
    """Within the context what a reward raises is a ConfigError that names it; a ValueError refuses its options.

    A UserError, such as the CheckpointError of a file, says enough already.
    """
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise ConfigError(f"rewards: the options {spec.options} do not fit reward {spec.name!r}: {error}") from error
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"rewards: reward {spec.name!r} cannot be made with the options {spec.options}: {reason(error)}"
        ) from error
