"""What there is to score: image files, and samples of latent files. Found by their headers, read one at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from flowrl.base.errors import UserError
from flowrl.base.images import UnreadableImage, image_pixels, image_size
from flowrl.core.latent_space import channels_and_factor

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
LATENT_SUFFIXES = (".safetensors",)
_FLOATING = ("F64", "F32", "F16", "BF16")  # as safetensors calls what latents can be stored as


class InputError(UserError, ValueError):
    """What was given to score cannot be; the message says which file, and what to do."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One thing to score.

    Example: the fourth sample of a latent file is ``Sample(name="a.safetensors#3", path=Path("a.safetensors"), row=3,
    shape=(16, 64, 64), seed=7)``.
    """

    name: str  # what the column `file` says
    path: Path
    row: int | None = None  # of a latent file that holds several samples
    shape: tuple[int, ...] = ()  # (3, H, W) of an image, (C, h, w) of latents
    seed: int | None = None  # that a latent file holds, of the noise that a reward draws; None: that of its prompt
    own_prompt: str | None = None  # that a latent file holds
    problem: str = ""  # why it cannot be read; empty where its header is whole


def find_files(places: Sequence[Path], suffixes: tuple[str, ...]) -> list[Path]:
    """The files among `places` and directly in the folders among them, in the order of `places`; those of a folder in
    natural order: img2 before img10.

    A file is taken whatever its name, of a folder those with one of `suffixes`. Raises InputError for what is not
    there, for a folder without such a file, and for a file that is found twice.
    """
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            files = [file for file in place.iterdir() if file.name[0] != "." and not file.is_dir()]
            inside = [file for file in files if file.suffix.lower() in suffixes]
            if not inside:
                raise InputError(f"{place}: no file in this folder ends in {', '.join(suffixes)}")
            found += sorted(inside, key=lambda file: (_natural(file.name), file.name))
        elif place.is_file():
            found.append(place)
        else:
            raise InputError(f"{place}: no such file or folder")
    if len(set(found)) < len(found):
        twice = next(file for file in found if found.count(file) > 1)
        raise InputError(f"{twice}: given twice; name a file once, by itself or by its folder")
    return found


def _natural(text: str) -> list[tuple[int, str]]:
    """A key under which runs of digits count as numbers."""
    parts = re.split(r"(\d+)", text.casefold())
    return [(int(part), "") if place % 2 else (0, part) for place, part in enumerate(parts)]


def image_samples(files: Sequence[Path]) -> list[Sample]:
    """One sample per image file, from its header."""
    samples = []
    for file in files:
        shape: tuple[int, ...] = ()
        problem = ""
        try:
            shape = (3, *image_size(file))
        except UnreadableImage as error:
            problem = _unread(error)
        samples.append(Sample(name=str(file), path=file, shape=shape, problem=problem))
    return samples


def latent_samples(files: Sequence[Path], latent_space: str, patch: int) -> list[Sample]:
    """One sample per row of the tensor `latents` of each file; a file that cannot be read is one sample with a problem.

    A file holds `latents` [N, C, h, w] or [C, h, w]; it may hold `seeds` [N] int64, and in its metadata `prompts`, a
    JSON list of N texts, and `latent_space`. The policy sees latents in patches of `patch` x `patch`, and makes none
    that these do not cover. Raises InputError for latents that are not the policy's: of another space, or of other
    channels than its name says; and when no file can be read.
    """
    samples = []
    for file in files:
        try:
            samples += _latent_samples(file, latent_space, patch)
        except (OSError, SafetensorError) as error:
            samples.append(Sample(name=str(file), path=file, problem=_unread(error)))
        except _LayoutError as error:
            samples.append(Sample(name=str(file), path=file, problem=str(error)))
    if all(sample.problem for sample in samples):
        count = f"none of {len(samples)} files can be scored, the first is " if len(samples) > 1 else ""
        raise InputError(f"{count}{samples[0].name}: {samples[0].problem}")
    return samples


class _LayoutError(ValueError):
    """A safetensors file that is whole and holds something else."""


def _latent_samples(file: Path, latent_space: str, patch: int) -> list[Sample]:
    with safe_open(file, framework="pt") as tensors:
        names = list(tensors.keys())
        if "latents" not in names:
            raise _LayoutError(f"must hold a tensor 'latents', has {', '.join(sorted(names)) or 'none'}")
        latents = tensors.get_slice("latents")
        shape, dtype = tuple(latents.get_shape()), latents.get_dtype()
        seeds = tensors.get_tensor("seeds") if "seeds" in names else None
        metadata: dict[str, str] = tensors.metadata() or {}
    if len(shape) not in (3, 4):
        raise _LayoutError(f"'latents' must be [N, C, h, w] or [C, h, w], is {list(shape)}")
    if dtype not in _FLOATING:
        raise _LayoutError(f"'latents' must be of {', '.join(_FLOATING)}, is of {dtype}")
    space = metadata.get("latent_space", latent_space)
    if space != latent_space:
        raise InputError(
            f"{file}: holds latents of {space}, but the policy's are of {latent_space}; name with --model the policy "
            "that made them"
        )
    several = len(shape) == 4
    named = channels_and_factor(latent_space)
    if named is not None and shape[-3] != named[0]:
        raise InputError(
            f"{file}: holds latents {list(shape)} of {shape[-3]} channels, but the policy's have {named[0]}; name with "
            "--model the policy that made them"
        )
    if any(side < patch or side % patch for side in shape[-2:]):
        raise _LayoutError(
            f"'latents' must have a height and a width that are multiples of {patch}, as the policy's have, is "
            f"{list(shape)}"
        )
    count = shape[0] if several else 1
    if not count:
        raise _LayoutError(f"'latents' holds no sample, is {list(shape)}")
    numbers = _own_seeds(seeds, count)
    prompts = _own_prompts(metadata.get("prompts"), count)
    return [
        Sample(
            name=f"{file}#{row}" if several else str(file),
            path=file,
            row=row if several else None,
            shape=shape[1:] if several else shape,
            seed=numbers[row],
            own_prompt=prompts[row],
        )
        for row in range(count)
    ]


def _own_seeds(seeds: torch.Tensor | None, count: int) -> Sequence[int | None]:
    if seeds is None:
        return [None] * count
    if seeds.numel() != count or seeds.dtype != torch.int64:
        raise _LayoutError(f"'seeds' must be [{count}] int64, is {list(seeds.shape)} {seeds.dtype}")
    return [int(seed) for seed in seeds.flatten().tolist()]


def _own_prompts(text: str | None, count: int) -> Sequence[str | None]:
    if text is None:
        return [None] * count
    try:
        prompts: Any = json.loads(text)
    except json.JSONDecodeError as error:
        raise _LayoutError(f"the metadata 'prompts' must be a JSON list of {count} texts: {error}") from None
    if not isinstance(prompts, list) or len(prompts) != count or not all(isinstance(one, str) for one in prompts):
        raise _LayoutError(f"the metadata 'prompts' must be a JSON list of {count} texts, is {text[:80]}")
    return prompts


def read_image(sample: Sample) -> torch.Tensor:
    """The pixels [3, H, W] float32 in [0, 1]; raises InputError for a torn file."""
    try:
        return image_pixels(sample.path).float() / 255
    except UnreadableImage as error:
        raise InputError(_unread(error)) from error


def read_latents(sample: Sample) -> torch.Tensor:
    """The latents [C, h, w] float32 of one sample; raises InputError for a torn file."""
    try:
        with safe_open(sample.path, framework="pt") as tensors:
            latents = tensors.get_slice("latents")
            part: torch.Tensor = latents[:] if sample.row is None else latents[sample.row]
    except (OSError, SafetensorError) as error:
        raise InputError(_unread(error)) from error
    return part.float()


def _unread(error: Exception) -> str:
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"cannot be read: {words or type(error).__name__}"
