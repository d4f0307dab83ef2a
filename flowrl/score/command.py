"""From what `flowrl score` was told to its table and its contact sheet."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

from flowrl.actors.device import ModelSpec
from flowrl.actors.reward_loading import LatentSource, check_rewards, load_reward
from flowrl.base.atomic_file import write_atomically
from flowrl.base.config_file import parse_options
from flowrl.base.devices import pick_device
from flowrl.base.embedded import POCKET, folder_of
from flowrl.config import ConfigError, ModelSection, RewardSpec
from flowrl.core.buckets import BucketPlan
from flowrl.models.image_sizes import ImageChoice, deviations, shared_buckets
from flowrl.pocket.text import MAX_TOKENS as POCKET_TOKENS
from flowrl.score.contact_sheet import ContactSheet
from flowrl.score.inputs import (
    IMAGE_SUFFIXES,
    LATENT_SUFFIXES,
    InputError,
    Sample,
    find_files,
    image_samples,
    latent_samples,
)
from flowrl.score.output import FORMATS, check_columns
from flowrl.score.policy_parts import PolicyParts
from flowrl.score.prompts import own_prompts, read_prompts
from flowrl.score.run import Kind, LabelledReward, Row, Scored, score
from flowrl.types import TrainedOn

_PIPELINE_TOKENS = 256  # what diffusers' Stable Diffusion 3 pipeline pads T5 to unless told otherwise
_SHOWN_PROBLEMS = 20


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to score, with what, and where to write it.

    Example: ``Order(places=(Path("images"),), rewards=("hpsv3",), prompt="a cat")``
    """

    places: tuple[Path, ...]  # files and folders
    rewards: tuple[str, ...]  # each "[LABEL=]NAME [option=value ...]"
    kind: Kind = "pixel"
    prompts: Path | None = None
    prompt: str | None = None  # of all samples
    model: str | None = None  # a diffusers folder or "pocket"
    family: str = "sd3"
    max_sequence_length: int | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"  # of the text encoders
    images: ImageChoice = field(default_factory=ImageChoice)  # the sizes of images that latents are made of
    device: str = "auto"
    out: Path | None = None  # None writes to standard output
    form: str = "csv"
    sheet: Path | None = None


def score_files(order: Order) -> int:
    """Score as ordered; returns the exit code: 1 where a sample lacks a score, which is named on standard error."""
    specs = [read_reward(text) for text in order.rewards]
    labels = [spec.metric_name for spec in specs]
    check_columns(labels)
    model = _model(order)
    space = model.latent_space
    trained = check_rewards(specs, LatentSource.of_policy(model, "--max-sequence-length"), model.device)
    buckets = _buckets(order.images, trained) if order.kind == "pixel" else None
    samples = _samples(order, space)
    prompts = _prompts(order, samples)
    rewards = [LabelledReward(label=spec.metric_name, reward=load_reward(spec, space, model.device)) for spec in specs]
    sheet = ContactSheet(labels[0]) if order.sheet is not None else None
    policy = PolicyParts(model, buckets)
    scored = score(samples, prompts, rewards, policy, kind=order.kind, with_pixels=sheet is not None)
    rows = _collect(scored, len(samples), sheet)
    table = FORMATS[order.form](rows, labels)
    if order.out is None:
        sys.stdout.write(table)
        sys.stdout.flush()
    else:
        write_atomically(order.out, table.encode())
    if order.sheet is not None and sheet is not None:
        write_atomically(order.sheet, sheet.png())
    failed = sum(bool(row.problems) for row in rows)
    if failed:
        _say(f"flowrl score: {failed} of {len(rows)} samples lack a score")
    return 1 if failed else 0


def read_reward(text: str) -> RewardSpec:
    """The reward that "[LABEL=]NAME [option=value ...]" names; values are YAML, quoted where they hold spaces.

    Raises InputError when the text reads otherwise.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InputError(f"--reward {text!r}: {error}") from None
    label, _, name = words[0].rpartition("=") if words else ("", "", "")
    if not name:
        raise InputError(f"--reward {text!r}: must read 'NAME option=value ...', such as 'dit_reward path=FOLDER'")
    try:
        return RewardSpec(name=name, label=label, options=parse_options(words[1:]))
    except ConfigError as error:
        raise InputError(f"--reward {text!r}: {error}") from None


def _model(order: Order) -> ModelSpec:
    """The policy, checked, of which nothing is loaded yet; raises InputError where it must be named and is not."""
    if order.kind == "latent" and order.model is None:
        raise InputError("--latents: name the policy that made them, with --model FOLDER or --model pocket")
    path = order.model or POCKET
    tokens = order.max_sequence_length or (POCKET_TOKENS if path == POCKET else _PIPELINE_TOKENS)
    section = ModelSection(family=order.family, path=path, dtype=order.dtype, max_sequence_length=tokens)
    spec = ModelSpec(
        section=section,
        path=folder_of(path, "sd35"),
        seed=0,
        device=pick_device(order.device, key="--device"),
        threads=torch.get_num_threads(),
    )
    spec.family.check(spec.path)
    return spec


def _buckets(choice: ImageChoice, trained: Mapping[str, TrainedOn]) -> BucketPlan | None:
    """The sizes that images are brought to for the latent rewards; those who are given others than their own are named.

    Raises UserError when the rewards were trained on different ones.
    """
    plan = shared_buckets(choice, trained, keys="--image-size, --bucket-step and --max-aspect")
    for line in deviations(plan, trained):
        _say(f"flowrl score: {line}")
    return plan


def _samples(order: Order, latent_space: str) -> list[Sample]:
    if order.kind == "latent":
        return latent_samples(find_files(order.places, LATENT_SUFFIXES), latent_space)
    return image_samples(find_files(order.places, IMAGE_SUFFIXES))


def _prompts(order: Order, samples: list[Sample]) -> list[str]:
    if order.prompts is not None:
        return read_prompts(order.prompts, samples)
    if order.prompt is not None:
        return [order.prompt] * len(samples)
    return own_prompts(samples)


def _collect(scored: Iterable[Scored], total: int, sheet: ContactSheet | None) -> list[Row]:
    """All rows in the order of the samples, with a progress bar; problems are said as they come, up to a number."""
    rows: dict[int, Row] = {}
    said = 0
    for one in tqdm(scored, desc="score", total=total, unit="sample", disable=None):
        rows[one.index] = one.row
        for problem in one.row.problems:
            said += 1
            if said <= _SHOWN_PROBLEMS:
                _say(f"{one.row.file}: {problem}")
        first = one.row.scores[0]
        if sheet is not None and one.pixels is not None and first is not None:
            sheet.add(one.index, score=first, file=one.row.file, prompt=one.row.prompt, pixels=one.pixels)
    if said > _SHOWN_PROBLEMS:
        _say(f"and {said - _SHOWN_PROBLEMS} more")
    return [rows[index] for index in range(total)]


def _say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)  # above the bar, where there is one
