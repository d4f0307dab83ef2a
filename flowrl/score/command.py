"""From what `flowrl score` was told to its table and its contact sheet."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from flowrl.base.atomic_file import write_atomically
from flowrl.base.config_file import parse_options
from flowrl.base.devices import pick_device
from flowrl.base.embedded import POCKET
from flowrl.base.errors import CheckpointError
from flowrl.config import ConfigError, RewardSpec
from flowrl.core.bucket_rules import TOKEN
from flowrl.core.buckets import BucketPlan
from flowrl.core.latent_space import channels_and_factor
from flowrl.models.image_sizes import ImageChoice, deviations, latent_deviations, shared_buckets
from flowrl.models.latent_inputs import EncoderSetting
from flowrl.pocket.text import MAX_TOKENS as POCKET_TOKENS
from flowrl.reward_loading import LatentSource, check_rewards, load_reward
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
    """Score as ordered; returns the exit code: 1 where a sample lacks a score, which is named on standard error.

    Where a reward fails, or the user stops it, the samples that were scored by then are in a table beside the one that
    was ordered, which stays as it was.
    """
    specs = [read_reward(text) for text in order.rewards]
    labels = [spec.metric_name for spec in specs]
    check_columns(labels)
    encoders = _encoders(order)
    space, device = encoders.latent_space, encoders.device
    source = LatentSource.of_policy(
        encoders.family, encoders.path, encoders.max_sequence_length, key="--max-sequence-length"
    )
    trained = check_rewards(specs, [source], device)
    buckets = _buckets(order.images, trained) if order.kind == "pixel" else None
    samples = _samples(order, space)
    if order.kind == "latent":
        _say_latent_sizes(samples, space, trained)
    prompts = _prompts(order, samples)
    rewards = [LabelledReward(label=spec.metric_name, reward=load_reward(spec, space, device)) for spec in specs]
    sheet = ContactSheet(labels[0]) if order.sheet is not None else None
    policy = PolicyParts(replace(encoders, buckets=buckets))
    scored = score(samples, prompts, rewards, policy, kind=order.kind, with_pixels=sheet is not None)
    rows: dict[int, Row] = {}
    try:
        _collect(scored, rows, len(samples), sheet)
    except BaseException:  # Ctrl-C too: hours of scoring are not to be done again for it
        if rows:
            _write_partial(order, rows, labels, len(samples))
        raise
    _write(order.out, order.form, rows, labels)
    if order.sheet is not None and sheet is not None:
        write_atomically(order.sheet, sheet.png())
    failed = sum(bool(row.problems) for row in rows.values())
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


def _encoders(order: Order) -> EncoderSetting:
    """Those of the policy, checked but not loaded; raises InputError where it must be named and is not."""
    if order.kind == "latent" and order.model is None:
        raise InputError("--latents: name the policy that made them, with --model FOLDER or --model pocket")
    path = order.model or POCKET
    try:
        return EncoderSetting.of(
            path,
            family=order.family,
            max_sequence_length=order.max_sequence_length or (POCKET_TOKENS if path == POCKET else _PIPELINE_TOKENS),
            dtype=order.dtype,
            device=pick_device(order.device, key="--device"),
        )
    except CheckpointError as error:
        raise CheckpointError(f"--model: {error}") from error


def _buckets(choice: ImageChoice, trained: Mapping[str, TrainedOn]) -> BucketPlan | None:
    """The sizes that images are brought to for the latent rewards; those who are given others than their own are named.

    Raises UserError when the rewards were trained on different ones.
    """
    plan = shared_buckets(choice, trained, keys=("--image-size", "--bucket-step", "--max-aspect"))
    for line in deviations(plan, trained):
        _say(f"flowrl score: {line}")
    return plan


def _samples(order: Order, latent_space: str) -> list[Sample]:
    if order.kind == "pixel":
        return image_samples(find_files(order.places, IMAGE_SUFFIXES))
    known = channels_and_factor(latent_space)
    patch = max(1, TOKEN // known[1]) if order.family == "sd3" and known is not None else 1
    return latent_samples(find_files(order.places, LATENT_SUFFIXES), latent_space, patch)


def _say_latent_sizes(samples: Sequence[Sample], latent_space: str, trained: Mapping[str, TrainedOn]) -> None:
    """Name the rewards that were trained on images of other sizes, where the space says how large the images are."""
    known = channels_and_factor(latent_space)
    if known is None:
        return
    sizes = {(sample.shape[-2] * known[1], sample.shape[-1] * known[1]) for sample in samples if not sample.problem}
    for line in latent_deviations(sizes, trained):
        _say(f"flowrl score: {line}")


def _prompts(order: Order, samples: list[Sample]) -> list[str]:
    if order.prompts is not None:
        return read_prompts(order.prompts, samples)
    if order.prompt is not None:
        return [order.prompt] * len(samples)
    return own_prompts(samples)


def _collect(scored: Iterable[Scored], rows: dict[int, Row], total: int, sheet: ContactSheet | None) -> None:
    """Put the rows in `rows` by the places of their samples, with a progress bar.

    Problems are said as they come, up to a number.
    """
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


def _write_partial(order: Order, rows: Mapping[int, Row], labels: Sequence[str], total: int) -> None:
    """Write the rows that there are beside the table that was ordered, or to standard output, and say so."""
    file = None if order.out is None else order.out.with_stem(f"{order.out.stem}.partial")
    _write(file, order.form, rows, labels)
    kept = f"; {order.out} is left as it was" if order.out is not None and order.out.exists() else ""
    sheet = "; no contact sheet is made" if order.sheet is not None else ""
    _say(f"flowrl score: stopped; {file or 'the table'} holds {len(rows)} of {total} samples{kept}{sheet}")


def _write(file: Path | None, form: str, rows: Mapping[int, Row], labels: Sequence[str]) -> None:
    """Write the table of the rows that there are, in the order of the samples; None writes to standard output."""
    table = FORMATS[form]([rows[index] for index in sorted(rows)], labels)
    if file is None:
        sys.stdout.write(table)
        sys.stdout.flush()
    else:
        write_atomically(file, table.encode())


def _say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)  # above the bar, where there is one
