"""Makes the reward model that a configuration trains."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState

from flowrl.base.config_tree import ConfigError
from flowrl.base.embedded import EMBEDDED, POCKET, folder_of
from flowrl.base.errors import UserError
from flowrl.core.buckets import BucketPlan
from rewards.data.set_origin import prepared_buckets
from rewards.data.store import PreferenceStore
from rewards.dit_reward.features import FeatureShards, features_name, pooled
from rewards.dit_reward.model import DiTRewardConfig, DiTRewardModel
from rewards.dit_reward.training import DiTRewardTraining, FrozenDiTRewardTraining, new_model
from rewards.hpsv3.training import HPSv3Training
from rewards.training.config import RewardTrainConfig
from rewards.training.trainable import TrainableReward


def make_trainable(config: RewardTrainConfig, stores: list[PreferenceStore], features: Path) -> TrainableReward:
    """The model, ready to be trained on the first of the sets that `open_stores` gives.

    A frozen backbone's features are computed in `features`, for all sets. Raises CheckpointError or ConfigError when
    the model cannot be made.
    """
    seed = config.run.seed
    if config.model.kind == "hpsv3":
        return HPSv3Training(folder_of(config.model.path, "hpsv3"), seed=seed)
    info = stores[0].info
    model = new_model(
        folder_of(config.model.path, "sd35") / "transformer",
        dit_reward_config(
            config,
            text_length=info.text_length,
            latent_space=info.latent_space,
            images=prepared_buckets(stores[0].folder),
        ),
        pretrained=config.model.init == "pretrained",
        seed=seed,
    )
    if config.model.mode != "frozen" or config.dit_reward.pooling != "mean":
        model.gradient_checkpointing = config.model.gradient_checkpointing
        return DiTRewardTraining(model, config.model.mode, lora_rank=config.model.lora_rank, seed=seed)
    return FrozenDiTRewardTraining(model, computed_features(config, model, stores, features))


def computed_features(
    config: RewardTrainConfig, model: DiTRewardModel, stores: list[PreferenceStore], root: Path
) -> dict[Path, FeatureShards]:
    """The features of all samples of the sets under a frozen backbone, computed where they are not there yet."""
    processes = PartialState()
    halved = config.model.precision == "bfloat16"
    backbone = f"{config.model.path}-{config.model.init}-{config.run.seed}" + ("-bfloat16" if halved else "")
    found = {}
    model.to(processes.device).eval()
    for store in stores:
        name = features_name(model, store.folder.name, f"{backbone}-{store.stamp}")
        shards = FeatureShards(root / name, len(store.shape))
        with torch.autocast(processes.device.type, torch.bfloat16, enabled=halved):
            shards.compute(
                partial(_features, model, store),
                store.shape,
                batch_size=config.eval.batch_size,
                rank=processes.process_index,
                world=processes.num_processes,
            )
        found[store.folder] = shards
    processes.wait_for_everyone()
    model.to("cpu")
    return found


def _features(model: DiTRewardModel, store: PreferenceStore, samples: torch.Tensor) -> torch.Tensor:
    """`pooled`, of which nothing that is not finite is kept on disk."""
    found = pooled(model, store, samples)
    if not bool(found.isfinite().all()):
        store.check_finite(samples)
        raise UserError(
            f"{store.folder}: the frozen backbone makes features that are not finite of its finite samples; use "
            "model.precision=float32, or another model.path"
        )
    return found


def dit_reward_config(
    config: RewardTrainConfig, *, text_length: int, latent_space: str, images: BucketPlan | None = None
) -> DiTRewardConfig:
    """The DiT-Reward that a configuration describes, to be trained on images of these sizes, where they are known.

    Raises ConfigError naming the section when it cannot be.
    """
    section = config.dit_reward
    try:
        return DiTRewardConfig(
            text_length=text_length,
            layers=tuple(section.layers),
            sigmas=tuple(section.sigmas),
            head_dims=tuple(section.head_dims),
            activation=section.activation,
            feature_norm=section.feature_norm,
            text_features=section.text_features,
            pooling=section.pooling,
            uncertainty=config.loss.kind == "uncertainty",
            latent_space=latent_space,
            base=_lasting_path(config.model.path),
            image_size=images.image_size if images else 0,
            bucket_step=images.step if images else 0,
            max_aspect=images.max_aspect if images else 0.0,
        )
    except ValueError as error:
        raise ConfigError(f"dit_reward: {error}") from None


def _lasting_path(path: str) -> str:
    """How a reward's folder names its base: "pocket" for the embedded one, else a path from everywhere."""
    folder = Path(path).resolve()
    return POCKET if path == POCKET or folder == (EMBEDDED / "sd35").resolve() else str(folder)
