"""Scores samples batch by batch: at no time is more than one batch in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from flowrl.base.errors import UserError
from flowrl.core.seeds import evaluation_seeds
from flowrl.reward_call import RewardInputError, score_in_parts
from flowrl.reward_protocols import Reward
from flowrl.score.inputs import InputError, Sample, read_image, read_latents
from flowrl.score.policy_parts import PolicyParts
from flowrl.types import RewardInput

Kind = Literal["pixel", "latent"]  # of what lies in the files, as `flowrl.reward_protocols.Reward` calls it


@dataclass(frozen=True, kw_only=True)
class LabelledReward:
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
    rewards: Sequence[LabelledReward],
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
            yield _unreadable(index, sample, prompts[index], len(rewards), sample.problem)
    size = max(one.reward.batch_size for one in rewards)
    read = read_image if kind == "pixel" else read_latents
    for chosen in _of_one_size(samples, size):
        whole: list[int] = []
        tensors = []
        for index in chosen:
            try:
                tensors.append(read(samples[index]))
                whole.append(index)
            except InputError as error:
                yield _unreadable(index, samples[index], prompts[index], len(rewards), str(error))
        if not whole:
            continue
        data = torch.stack(tensors)
        batch = _Batch(
            indices=whole,
            prompts=[prompts[index] for index in whole],
            seeds=_seeds([samples[index] for index in whole], [prompts[index] for index in whole]),
            pixels=data if kind == "pixel" else None,
            latents=data if kind == "latent" else None,
        )
        yield from _score_batch(_converted(batch, rewards, policy, with_pixels), samples, rewards, policy)


def _seeds(samples: Sequence[Sample], prompts: Sequence[str]) -> torch.Tensor:
    """The seeds [B] int64 that the samples' files hold, else those of their prompts."""
    of_prompts = evaluation_seeds(prompts)
    own = [sample.seed for sample in samples]
    return torch.tensor([other if seed is None else seed for seed, other in zip(own, of_prompts.tolist(), strict=True)])


def _of_one_size(samples: Sequence[Sample], size: int) -> Iterator[list[int]]:
    """The places of readable samples, up to `size` of one shape together."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for index, sample in enumerate(samples):
        if not sample.problem:
            by_shape.setdefault(sample.shape, []).append(index)
    for places in by_shape.values():
        for start in range(0, len(places), size):
            yield places[start : start + size]


def _unreadable(index: int, sample: Sample, prompt: str, num_rewards: int, problem: str) -> Scored:
    row = Row(file=sample.name, prompt=prompt, scores=(None,) * num_rewards, problems=(problem,))
    return Scored(index=index, row=row, pixels=None)


def _converted(batch: _Batch, rewards: Sequence[LabelledReward], policy: PolicyParts, with_pixels: bool) -> _Batch:
    """The batch with latents of its images, or images of its latents, where they are needed."""
    kinds = {one.reward.input_kind for one in rewards}
    if batch.latents is not None and batch.pixels is None and ("pixel" in kinds or with_pixels):
        return replace(batch, pixels=policy.pixels(batch.latents))
    if batch.pixels is not None and batch.latents is None and "latent" in kinds:
        try:
            return replace(batch, latents=policy.inputs.latents(batch.pixels).cpu())
        except UserError:  # of the encoders, which are loaded here: no image is to blame
            raise
        except ValueError as error:
            return replace(batch, unfit=str(error))
    return batch


def _score_batch(
    batch: _Batch, samples: Sequence[Sample], rewards: Sequence[LabelledReward], policy: PolicyParts
) -> Iterator[Scored]:
    columns = [_scores(batch, range(len(batch.indices)), one, policy) for one in rewards]
    for place, index in enumerate(batch.indices):
        found = [column[place] for column in columns]
        row = Row(
            file=samples[index].name,
            prompt=batch.prompts[place],
            scores=tuple(None if isinstance(value, str) else value for value in found),
            problems=tuple(value for value in found if isinstance(value, str)),
        )
        yield Scored(index=index, row=row, pixels=None if batch.pixels is None else batch.pixels[place])


def _scores(batch: _Batch, rows: range, one: LabelledReward, policy: PolicyParts) -> list[float | str]:
    """The score of each sample in `rows`, or why it has none.

    Where the reward refuses, each sample is tried by itself, so that the others keep theirs.
    """
    if one.reward.input_kind == "latent" and batch.unfit:
        return [f"{one.label}: {batch.unfit}"] * len(rows)

    def take(part: range) -> RewardInput:
        return _input(batch, slice(rows[part.start], rows[part.start] + len(part)), one.reward, policy)

    try:
        values = score_in_parts(one.reward, len(rows), take).tolist()
    except RewardInputError as error:
        if len(rows) == 1:
            return [str(error)]
        return [value for row in rows for value in _scores(batch, range(row, row + 1), one, policy)]
    return [value if math.isfinite(value) else f"{one.label}: gave no finite score" for value in values]


def _input(batch: _Batch, rows: slice, reward: Reward, policy: PolicyParts) -> RewardInput:
    prompts = tuple(batch.prompts[rows])
    given = RewardInput(prompts=prompts, seeds=batch.seeds[rows])
    if reward.input_kind == "pixel":
        assert batch.pixels is not None
        return replace(given, pixels=batch.pixels[rows])
    assert batch.latents is not None
    return replace(given, latents=batch.latents[rows], condition=policy.inputs.condition(prompts))
