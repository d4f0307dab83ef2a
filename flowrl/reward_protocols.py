"""What flowrl asks of a reward: the members that each has, and those that some have besides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch

from flowrl.types import HollowReward, RewardInput, TrainedOn


class Reward(Protocol):
    """Scores samples; higher is better. Deterministic given the batch and its seeds.

    A class that a configuration names is made with `device`, "cpu" or "cuda", and with the options given there. Of
    these `dtype` (a name in `flowrl.base.dtypes`) and `batch_size` mean the same in all rewards.
    """

    name: str
    input_kind: Literal["latent", "pixel"]
    latent_space: str | None  # which latents it reads; None for a pixel reward
    batch_size: int  # samples scored in one call

    def __call__(self, batch: RewardInput) -> torch.Tensor:
        """Scores [B] float32 of a batch [B]; a sample that cannot be scored is NaN."""
        ...


@runtime_checkable
class ShardableReward(Reward, Protocol):
    """A reward whose network can be spread over a gang: everything heavy happens in `module.forward`."""

    module: torch.nn.Module


@runtime_checkable
class StreamedReward(ShardableReward, Protocol):
    """A ShardableReward whose weights go to a gang tensor by tensor, so that no process ever holds all of them.

    Its constructor takes `empty`, a bool, beside its options. With it no weights are read: `module` is built on the
    meta device (but for buffers that no file holds), and gets what `read_weights` gives on the first rank alone.
    """

    def read_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors of the empty module's state dict by name on the CPU, in the dtype that it has in the end, each
        read when it is asked for, and copied before the next is. Raises ValueError, naming the file, when they are not
        all there.
        """
        ...


@runtime_checkable
class CheckableReward(Protocol):
    """The class of a reward that can tell from its files alone whether it can be made; asked before anything starts.

    `preflight` is a static method. Its parameters are those of the constructor that it needs, by their names; it gets
    what the constructor would get, defaults included. It returns what the reward was trained on, a `TrainedOn`, or None
    for a pixel reward, and raises ValueError, naming the file, when the reward cannot be made.
    """

    preflight: Callable[..., TrainedOn | None]


@runtime_checkable
class MeasurableReward(Protocol):
    """The class of a reward that can show its network without weights, by which `flowrl plan` counts what it takes.

    `hollow` is a static method. Its parameters are `shapes`, a `flowrl.types.SampleShapes`, and those of the
    constructor that it needs, by their names; of these it gets what the constructor would get, defaults included. It
    works before the reward's files are there, if sizes are published; it raises ValueError when it cannot.
    """

    hollow: Callable[..., HollowReward]


@dataclass(frozen=True, kw_only=True)
class NeededFiles:
    """A folder or a file that a reward reads and that does not come with it, there or not.

    Example: ``NeededFiles(option="path", path=Path("models/HPSv3"))``
    """

    option: str  # that names it, or would name another
    path: Path
    # "reward": files of this reward alone, in a folder of any name. "base": a published model, known by its folder's.
    kind: Literal["reward", "base"] = "reward"
    said_in: str = ""  # the file that names it where the option does not
    advice: str = ""  # how to get it, in words, where no public source is known to `flowrl fetch`


@runtime_checkable
class FetchableReward(Protocol):
    """The class of a reward that can name the files that it reads, for `flowrl fetch`, `doctor` and `train`.

    `needs` is a static method. Its parameters are `policy`, the name of the folder of the run's policy, and those of
    the constructor that it needs, by their names; of these it gets what the constructor would get, defaults included.
    It works before anything is there: what is wrong with files is for the preflight to say.
    """

    needs: Callable[..., tuple[NeededFiles, ...]]
