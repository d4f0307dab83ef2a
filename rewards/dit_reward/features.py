"""Pooled features of a prepared set's samples under a frozen backbone, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file
from tqdm import tqdm

from flowrl.base.weight_files import check_safetensors
from flowrl.core.seeds import evaluation_seeds
from rewards.data.store import PreferenceStore, save_tensors
from rewards.dit_reward.model import DiTRewardModel, sample_noise

_PER_SHARD = 2048  # samples


class FeatureShards:
    """The features [N, K, F] float32 of a set's N samples, mapped from files of one folder.

    K are the noise levels that a head is averaged over, or the layers that are probed.
    """

    def __init__(self, folder: Path, num_samples: int) -> None:
        self._folder = folder
        self._num_shards = -(-num_samples // _PER_SHARD)
        self._shards: list[torch.Tensor] = []

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:05d}.safetensors"

    def compute(
        self,
        read: Callable[[torch.Tensor], torch.Tensor],
        shapes: torch.Tensor,
        *,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Write the shards that are not there, this rank's share of them.

        `read` gives the features [n, K, F] of samples [n] of one shape; `shapes` [N] is the shape of each sample.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        missing = [n for n in range(rank, self._num_shards, world) if not self._path(n).is_file()]
        for number in tqdm(missing, desc="features", unit="shard", mininterval=2, disable=rank > 0):
            stop = min((number + 1) * _PER_SHARD, len(shapes))
            rows = torch.arange(number * _PER_SHARD, stop)
            features = torch.empty(0)
            for shape in torch.unique(shapes[rows]).tolist():
                for part in rows[shapes[rows] == shape].split(batch_size):
                    found = read(part)
                    features = torch.zeros(len(rows), *found.shape[1:]) if not len(features) else features
                    features[part - rows[0]] = found
            save_tensors(self._path(number), {"features": features})

    def rows(self, samples: torch.Tensor) -> torch.Tensor:
        """The features [n, K, F] float32 of samples [n]."""
        if not self._shards:
            for number in range(self._num_shards):
                check_safetensors(self._path(number))
                self._shards.append(load_file(self._path(number))["features"])
        found = [self._shards[row // _PER_SHARD][row % _PER_SHARD] for row in samples.tolist()]
        return torch.stack(found)


@torch.no_grad()
def pooled(model: DiTRewardModel, store: PreferenceStore, samples: torch.Tensor) -> torch.Tensor:
    """The pooled features [n, K, F] float32 on the CPU of samples [n] of one shape, at each of the model's K levels."""
    inputs = model_inputs(model, store, samples)
    return torch.stack([model.features(*inputs, sigma) for sigma in model.config.sigmas], 1).float().cpu()


def model_inputs(
    model: DiTRewardModel, store: PreferenceStore, samples: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents, noise, embeds and pooled embeds of samples [n] of one shape, on the model's device.

    Noise is keyed by prompt, so that the samples of a comparison share it.
    """
    latents = store.tensors("latents", samples)
    condition = store.conditions(store.prompt[samples])
    noise = sample_noise(evaluation_seeds(store.texts(samples)), tuple(latents.shape[1:]))
    device = model.transformer.device
    return latents.to(device), noise.to(device), condition.embeds.to(device), condition.pooled.to(device)


def features_name(model: DiTRewardModel, part: str, backbone: str) -> str:
    """A folder's name for the features of one part of the data: another backbone or head config gives another name."""
    key = json.dumps([asdict(model.config), backbone], sort_keys=True)
    return f"{part}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
