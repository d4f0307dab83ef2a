"""What each role loads, as functions that processes can be started with; `rank` comes last."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from flowrl.actors.scorer import Scorer
from flowrl.actors.sharding import join_gang, shard_empty
from flowrl.config import ModelSection, RewardSpec
from flowrl.model_spec import ModelSpec
from flowrl.models.sd3 import SD3
from flowrl.types import RewardInput
from tests import tiny
from tests.measured_scorer import local_elements


def policy(folder: Path, rank: int) -> Any:
    """The policy with its adapter, of a rollout or a learner."""
    section = ModelSection(path=str(folder), image_size=tiny.IMAGE_SIZE, dtype="bfloat16", lora_rank=4)
    loaded = ModelSpec(section=section, path=folder, seed=0, device="cpu", threads=1).load_policy()
    _use(loaded.module)
    return loaded


def encoder(folder: Path, rank: int) -> Any:
    """The text encoders."""
    loaded = SD3.load_encoder(folder, max_sequence_length=14, dtype=torch.bfloat16, device="cpu")
    _use(loaded._pipeline.text_encoder_3)
    return loaded


def decoder(folder: Path, rank: int) -> Any:
    """The image decoder."""
    loaded = SD3.load_decoder(folder, device="cpu")
    _use(loaded._vae)
    return loaded


def scorer(folder: Path, name: str, reward: Path, sharded: bool, rank: int) -> Any:
    """A scorer with one reward in half precision, beside the small decoder of a folder."""
    spec = RewardSpec(name=name, options={"path": str(reward), "dtype": "bfloat16"})
    loaded = Scorer(tiny.model_spec(folder), [spec], [], sharded=sharded, timeout_s=60, shows_images=True)
    if not sharded:
        _use(loaded._rewards[name].module)  # type: ignore[attr-defined]
    return loaded


def _use(module: torch.nn.Module) -> None:
    """Touch every page of the weights, as a forward would: those of a file are in memory from then on."""
    for tensor in module.state_dict().values():
        tensor.detach().flatten().view(torch.uint8)[::4096].sum()


def scorer_of(folder: Path, rewards: dict[str, list[Path]], rank: int, *, sharded: bool) -> Scorer:
    """A scorer with each reward in float32 and in half precision; of each the name, and its folder on each rank.

    What follows a # in a name tells two of the same kind apart.
    """
    specs = [
        RewardSpec(
            name=name.partition("#")[0], label=f"{name} {dtype}", options={"path": str(paths[rank]), "dtype": dtype}
        )
        for name, paths in rewards.items()
        for dtype in ("float32", "bfloat16")
    ]
    return Scorer(tiny.model_spec(folder), specs, [], sharded=sharded, timeout_s=60, shows_images=False)


def score(folder: Path, rewards: dict[str, list[Path]], group: Path, rank: int) -> dict[str, Any]:
    """The scores of a group by a gang, and how many weights the rank holds, of each reward."""
    made = scorer_of(folder, rewards, rank, sharded=True)
    scores = made.score(torch.load(group, weights_only=False)).per_reward
    return {name: (scores[name].tolist(), local_elements(made._rewards[name].module)) for name in scores}  # type: ignore[attr-defined]


class Weighted:
    """A reward of one small network that a gang spreads as it is: its weights are drawn, and no file holds them."""

    name = "weighted"
    input_kind: Literal["latent", "pixel"] = "latent"
    latent_space: str | None = None
    batch_size = 4

    def __init__(self, device: str = "cpu", offset: int = 0) -> None:
        draw = torch.Generator().manual_seed(0)
        self.module: torch.nn.Module = torch.nn.Linear(tiny.DIMS, 64)
        self.module.weight = torch.nn.Parameter(torch.randn(64, tiny.DIMS, generator=draw))
        self.module.bias = torch.nn.Parameter(torch.randn(64, generator=draw))
        # Of rank 1 another where there is an offset.
        table = torch.arange(3) + offset * int(os.environ.get("RANK", "0") == "1")
        self.module.register_buffer("table", table, persistent=False)

    def __call__(self, batch: RewardInput) -> torch.Tensor:
        assert batch.latents is not None
        return self.module(batch.latents.flatten(1)).sum(1)


def make(folder: Path, options: dict[str, Any], rank: int) -> list[float]:
    """A scorer of a gang with a reward that cannot be made empty; gives its scores of latents of ones."""
    spec = RewardSpec(name="tests.loaded_roles:Weighted", options=options)
    made = Scorer(tiny.model_spec(folder), [spec], [], sharded=True, timeout_s=60, shows_images=False)
    [reward] = made._rewards.values()
    batch = RewardInput(prompts=("",), seeds=torch.zeros(1, dtype=torch.int64), latents=torch.ones(1, *tiny.SHAPE))
    return reward(batch).tolist()


def stop_reading(rank: int) -> None:
    """A gang whose first rank fails between two tensors."""
    join_gang("cpu", 60)
    with torch.device("meta"):
        module = torch.nn.Linear(4, 4)

    def read() -> Iterator[tuple[str, torch.Tensor]]:
        yield "weight", torch.zeros(4, 4)
        raise OSError("the disk is gone")

    shard_empty(module, read, torch.device("cpu"))
