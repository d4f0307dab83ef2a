"""Scores samples batch by batch: at no time is more than one batch in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from flowrl.core.reward_call import RewardInputError, call_reward
from flowrl.protocols import Reward
from flowrl.score.inputs import InputError, Sample, read_image, read_latents
from flowrl.score.policy_parts import PolicyParts
from flowrl.types import RewardInput

Kind = Literal["image", "latent"]


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A reward, and what its scores are called."""

    label: str
    reward: Reward


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is said of one sample.

    Example: ``Row(file="a.png", prompt="a cat", scores=(7.25, None), problems=("pick_score: gave no finite score",))``
    """

    file: str
    prompt: str
    scores: tuple[float | None, ...]  # one per reward, in their order; None where there is none
    problems: tuple[str, ...] = ()  # why


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A sample that is done: its place among all samples, and its pixels [3, H, W] where they were at hand."""

    index: int
    row: Row
    pixels: torch.Tensor | None


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """Samples of one size, with what the rewards that are there read; `unfit` says why there are no latents."""

    indices: list[int]
    prompts: list[str]
    seeds: torch.Tensor
    pixels: torch.Tensor | None
    latents: torch.Tensor | None
    unfit: str = ""


def score(
    samples: Sequence[Sample],
    prompts: Sequence[str],
    judges: Sequence[Judge],
    policy: PolicyParts,
    *,
    kind: Kind,
    with_pixels: bool,
) -> Iterator[Scored]:
    """Score every sample with every reward, those of one size together; yields each once, not in their order.

    What cannot be read, or is refused by a reward, has no score and a row that says why. `with_pixels` decodes latents
    even where no reward asks for it.
    """
    for index, sample in enumerate(samples):
        if sample.problem:
            yield _unreadable(index, sample, prompts[index], len(judges), sample.problem)
    size = max(judge.reward.batch_size for judge in judges)
    read = read_image if kind == "image" else read_latents
    for chosen in _of_one_size(samples, size):
        whole: list[int] = []
        tensors = []
        for index in chosen:
            try:
                tensors.append(read(samples[index]))
                whole.append(index)
            except InputError as error:
                yield _unreadable(index, samples[index], prompts[index], len(judges), str(error))
        if not whole:
            continue
        data = torch.stack(tensors)
        batch = _Batch(
            indices=whole,
            prompts=[prompts[index] for index in whole],
            seeds=torch.tensor([samples[index].seed for index in whole]),
            pixels=data if kind == "image" else None,
            latents=data if kind == "latent" else None,
        )
        yield from _score_batch(_converted(batch, judges, policy, with_pixels), samples, judges, policy)


def _of_one_size(samples: Sequence[Sample], size: int) -> Iterator[list[int]]:
    """The places of readable samples, up to `size` of one shape together."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for index, sample in enumerate(samples):
        if not sample.problem:
            by_shape.setdefault(sample.shape, []).append(index)
    for places in by_shape.values():
        for start in range(0, len(places), size):
            yield places[start : start + size]


def _unreadable(index: int, sample: Sample, prompt: str, num_judges: int, problem: str) -> Scored:
    row = Row(file=sample.name, prompt=prompt, scores=(None,) * num_judges, problems=(problem,))
    return Scored(index=index, row=row, pixels=None)


def _converted(batch: _Batch, judges: Sequence[Judge], policy: PolicyParts, with_pixels: bool) -> _Batch:
    """The batch with latents of its images, or images of its latents, where they are needed."""
    kinds = {judge.reward.input_kind for judge in judges}
    if batch.latents is not None and batch.pixels is None and ("pixel" in kinds or with_pixels):
        return replace(batch, pixels=policy.pixels(batch.latents))
    if batch.pixels is not None and batch.latents is None and "latent" in kinds:
        try:
            return replace(batch, latents=policy.latents(batch.pixels))
        except ValueError as error:
            return replace(batch, unfit=str(error))
    return batch


def _score_batch(
    batch: _Batch, samples: Sequence[Sample], judges: Sequence[Judge], policy: PolicyParts
) -> Iterator[Scored]:
    columns = [_scores(batch, judge, policy) for judge in judges]
    for place, index in enumerate(batch.indices):
        found = [column[place] for column in columns]
        row = Row(
            file=samples[index].name,
            prompt=batch.prompts[place],
            scores=tuple(None if isinstance(value, str) else value for value in found),
            problems=tuple(value for value in found if isinstance(value, str)),
        )
        yield Scored(index=index, row=row, pixels=None if batch.pixels is None else batch.pixels[place])


def _scores(batch: _Batch, judge: Judge, policy: PolicyParts) -> list[float | str]:
    """The score of each sample, or why it has none."""
    if judge.reward.input_kind == "latent" and batch.unfit:
        return [f"{judge.label}: {batch.unfit}"] * len(batch.indices)
    found: list[float | str] = []
    for part in torch.arange(len(batch.indices)).split(judge.reward.batch_size):
        found += _scores_of(_input(batch, part, judge.reward, policy), judge)
    return found


def _input(batch: _Batch, part: torch.Tensor, reward: Reward, policy: PolicyParts) -> RewardInput:
    prompts = tuple(batch.prompts[place] for place in part.tolist())
    given = RewardInput(prompts=prompts, seeds=batch.seeds[part])
    if reward.input_kind == "pixel":
        assert batch.pixels is not None
        return replace(given, pixels=batch.pixels[part])
    assert batch.latents is not None
    return replace(given, latents=batch.latents[part], condition=policy.condition(prompts))


def _scores_of(given: RewardInput, judge: Judge) -> list[float | str]:
    """The scores of one call; where the reward refuses, each sample is tried by itself, so that others keep theirs."""
    try:
        values = call_reward(judge.reward, given).tolist()
    except RewardInputError as error:
        if len(given.prompts) == 1:
            return [str(error)]
        return [value for place in range(len(given.prompts)) for value in _scores_of(_one(given, place), judge)]
    return [value if math.isfinite(value) else f"{judge.label}: gave no finite score" for value in values]


def _one(given: RewardInput, place: int) -> RewardInput:
    """One sample of a batch as a batch."""
    here = slice(place, place + 1)
    condition = given.condition
    if condition is not None:
        condition = replace(condition, embeds=condition.embeds[here], pooled=condition.pooled[here])
    return RewardInput(
        prompts=given.prompts[here],
        seeds=given.seeds[here],
        latents=None if given.latents is None else given.latents[here],
        condition=condition,
        pixels=None if given.pixels is None else given.pixels[here],
    )
