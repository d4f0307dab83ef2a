"""The prepared sets that a configuration trains and validates on, made from its sources where they are not there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from flowrl.base.config_tree import ConfigError
from flowrl.base.devices import pick_device
from flowrl.base.dtypes import torch_dtype
from flowrl.base.embedded import folder_of
from flowrl.core.buckets import BucketPlan
from flowrl.models.latent_inputs import EncoderSetting
from flowrl.models.sd3 import SD3
from rewards.data.prepare import Encoders, prepare
from rewards.data.set_origin import check_choices, check_files
from rewards.data.store import INFO, PreferenceStore, load_info
from rewards.dit_reward.training import check_store, check_text_length
from rewards.training.config import RewardTrainConfig
from rewards.training.readable_sizes import ReadableSizes

PARTS = ("train", "validation")


def open_stores(config: RewardTrainConfig, *, resume: bool = False) -> tuple[PreferenceStore, PreferenceStore]:
    """The sets of `data.store`; one that is not whole is prepared first, unless several processes are at work.

    A training that is resumed goes on with the sets that are there, whatever became of their sources; its checkpoint
    knows whether they are those that it began with. Raises ConfigError when there is nothing to prepare a set from, it
    was prepared otherwise, its sources have changed or its images are larger than the model reads, CheckpointError when
    files are torn or of another model.
    """
    missing = [part for part in PARTS if not (Path(config.data.store) / part / INFO).is_file()]
    if missing and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"data.store={config.data.store} has no whole {missing[0]} set; prepare it before training on several "
            "devices: flowrl reward prepare CONFIG"
        )
    prepared = list(PARTS) if missing and not resume else missing
    if prepared:
        prepare_stores(config, names=prepared)
    else:
        _check_sets(config)
    data = config.data
    for part, sources in zip(PARTS, (data.train, data.validation), strict=True):
        if sources and part not in prepared:  # preparing has checked the others
            check_choices(Path(data.store) / part, sources, _buckets(config), torch_dtype(data.dtype))
            if not resume:
                check_files(Path(data.store) / part, sources)
    train, validation = (PreferenceStore(Path(config.data.store) / part) for part in PARTS)
    for store in (train, validation):
        store.require("pixels" if config.model.kind == "hpsv3" else "latents")
    return train, validation


def prepare_stores(
    config: RewardTrainConfig, *, names: Sequence[str] = PARTS, part: int = 0, num_parts: int = 1
) -> bool:
    """Make the sets of `data.store` that are named, or a part of each; returns whether they are whole now.

    Raises what `open_stores` raises; where one set is there and does not suit the model, before the other is made.
    """
    _check_sets(config)
    data = config.data
    given = {"train": data.train, "validation": data.validation}
    given = {name: given[name] for name in names}
    for name, sources in given.items():
        if not sources and not (Path(data.store) / name / INFO).is_file():
            raise ConfigError(
                f"data.store={data.store} has no whole {name} set, and data.{name} names nothing to prepare it from"
            )
    if config.model.kind != "hpsv3" and any(not (Path(data.store) / name / INFO).is_file() for name in names):
        _readable(config).check_buckets(_buckets(config))
    encoders = _encoders(config)
    whole = True
    for name, sources in given.items():
        if not sources:
            continue
        whole &= prepare(
            Path(data.store) / name,
            sources,
            encoders,
            _buckets(config),
            encode_batch=data.encode_batch,
            max_bad_share=data.max_bad_share,
            part=part,
            num_parts=num_parts,
        )
    return whole


def _check_sets(config: RewardTrainConfig) -> None:
    """Raise CheckpointError when a set that is there has other latents or text lengths than the backbone reads, and
    ConfigError when it has larger images.
    """
    if config.model.kind == "hpsv3":
        return
    folder = folder_of(config.model.path, "sd35")
    SD3.check(folder)
    text_length = SD3.text_length(folder, config.data.max_sequence_length)
    readable = _readable(config)
    for made in (Path(config.data.store) / part for part in PARTS):
        if (made / INFO).is_file():
            info = load_info(made)
            check_store(info, SD3.latent_space(folder), made)
            check_text_length(info, text_length, made)
            readable.check_set(PreferenceStore(made))


def _encoders(config: RewardTrainConfig) -> Encoders:
    """The policy's own VAE and text encoders; none for a pixel reward."""
    dtype = torch_dtype(config.data.dtype)
    if config.model.kind == "hpsv3":
        return Encoders(name="", latent_space="", image=None, text=None, dtype=dtype)
    device = pick_device(config.data.device, key="data.device")
    setting = EncoderSetting.of(
        config.model.path,
        max_sequence_length=config.data.max_sequence_length,
        dtype="float32" if device == "cpu" else "bfloat16",
        device=device,
    )
    text = setting.load_texts()
    return Encoders(
        name=config.model.path,
        latent_space=setting.latent_space,
        image=setting.load_images().encode,
        text=text.encode,
        cuts=text.cuts,
        dtype=dtype,
    )


def _readable(config: RewardTrainConfig) -> ReadableSizes:
    return ReadableSizes.of(config.model.path, folder_of(config.model.path, "sd35"))


def _buckets(config: RewardTrainConfig) -> BucketPlan:
    data = config.data
    return BucketPlan(image_size=data.image_size, step=data.bucket_step, max_aspect=data.max_aspect)
