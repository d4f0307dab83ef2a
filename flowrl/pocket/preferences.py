"""Builds the preference set of the pocket world: the policy's own samples and edited renderings, ranked by the oracle.

A group is what one prompt got: eight samples of the policy (five under one rollout setting, as in a training step,
three under others), or eight renderings (two true, three with a flaw, three of a scene that differs in one word).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file
from tqdm import tqdm

from flowrl.pocket import oracle
from flowrl.pocket.generator import scaled_latents
from flowrl.pocket.render import FLAWS, draw, place
from flowrl.pocket.sampling import SamplerSetting, TextTable, decode, encode_texts, sample_latents
from flowrl.pocket.scene import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZES, Scene, all_scenes
from rewards.data.pairs import PairTable
from rewards.data.store import save_tensors

KINDS = ("policy", "edited")
# Of a pair: two policy samples under one rollout setting, as a training step draws them; two others; two renderings.
SOURCES = ("rollout", "policy", "edited")
# Two samples make a pair when their oracle totals differ by at least this. Training takes small differences too:
# those are what the samples of one rollout group show.
TRAIN_MARGIN = 0.02
TEST_MARGIN = 0.05
GROUP = 8
_SAME = 5  # samples of a policy group that share one setting
_TRUE, _FLAWED = 2, 3
_CHUNK = 128  # prompts of one shard
_SINGLE_SHARE = 0.15
_DECODE_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class SetPlan:
    """How many prompts there are of each kind; multiples of the shard size are rounded up to."""

    policy_train: int = 1536
    edited_train: int = 640
    policy_test: int = 384
    edited_test: int = 128


@dataclass(frozen=True, kw_only=True)
class SampleTable:
    """N samples of P prompts with the oracle's judgement."""

    prompts: tuple[str, ...]  # P
    text: TextTable  # of the prompts
    prompt: torch.Tensor  # [N] int64, row of `prompts`
    latents: torch.Tensor  # [N, 16, 8, 8] float16, model-scaled
    images: torch.Tensor  # [N, 3, 64, 64] uint8, decoded latents
    parts: torch.Tensor  # [N, 4] float32, in the order of oracle.PARTS
    total: torch.Tensor  # [N] float32
    kind: torch.Tensor  # [N] int64, index into KINDS
    same: torch.Tensor  # [N] bool: drawn under the setting that most of its group shares
    seconds: float  # that drawing and judging took


def choose_scenes(count: int, *, test: bool, generator: torch.Generator) -> list[Scene]:
    """Different scenes of one split in random order, a fixed share of them (if there are so many) with one thing."""
    scenes = all_scenes(test=test)
    singles = [scene for scene in scenes if scene.relation is None]
    doubles = [scene for scene in scenes if scene.relation is not None]
    num_single = min(len(singles), round(count * _SINGLE_SHARE))
    if count - num_single > len(doubles):
        raise ValueError(f"the pocket grammar has {len(scenes)} scenes of this split, got a request for {count}")
    picked = [singles[i] for i in torch.randperm(len(singles), generator=generator)[:num_single].tolist()]
    picked += [doubles[i] for i in torch.randperm(len(doubles), generator=generator)[: count - num_single].tolist()]
    return [picked[i] for i in torch.randperm(count, generator=generator).tolist()]


def changed(scene: Scene, generator: torch.Generator) -> Scene:
    """The scene with one word changed: a size, colour or shape, the background, or the relation."""

    def other(options: tuple[str, ...], current: str | None) -> str:
        left = [option for option in options if option != current]
        return left[int(torch.randint(0, len(left), (), generator=generator))]

    fields = (
        ["size", "colour", "shape"] * len(scene.things) + ["background"] + ["relation"] * (2 * bool(scene.relation))
    )
    which = int(torch.randint(0, len(fields), (), generator=generator))
    field, slot = fields[which], which // 3
    if field == "background":
        return replace(scene, background=other(tuple(BACKGROUNDS), scene.background))
    if field == "relation":
        return replace(scene, relation=other(tuple(RELATIONS), scene.relation))
    thing = scene.things[slot]
    if field == "size":
        thing = replace(thing, size=other(SIZES, thing.size))
    elif field == "shape":
        thing = replace(thing, shape=other(SHAPES, thing.shape))
    else:
        taken = {one.colour for one in scene.things}
        thing = replace(thing, colour=other(tuple(colour for colour in COLOURS if colour not in taken), None))
    return replace(scene, things=tuple(thing if k == slot else old for k, old in enumerate(scene.things)))


def edited_images(scenes: list[Scene], generator: torch.Generator) -> torch.Tensor:
    """GROUP renderings of each scene, [GROUP * len(scenes), 3, 64, 64], round-major: true, flawed, then changed."""
    images = []
    for round_index in range(GROUP):
        if round_index >= _TRUE + _FLAWED:
            images.append(draw(place([changed(scene, generator) for scene in scenes], generator), generator))
            continue
        layout = place(scenes, generator)
        if round_index >= _TRUE:
            which = torch.randint(0, len(FLAWS), (len(scenes),), generator=generator)
            strength = 0.35 + 0.65 * torch.rand(len(scenes), generator=generator)
            layout = replace(layout, flaw={name: strength * (which == i) for i, name in enumerate(FLAWS)})
        images.append(draw(layout, generator))
    return torch.cat(images)


def settings(count: int, generator: torch.Generator) -> list[SamplerSetting]:
    """The settings of a shard's GROUP rounds: the first _SAME are one rollout setting, the others are random."""

    def pick(options: tuple[int, ...]) -> int:
        return options[int(torch.randint(0, len(options), (), generator=generator))]

    rollout = SamplerSetting(num_steps=10, guidance=4.5, noise_level=0.7, noisy_steps=pick((0, 0, 3, 5, 9)))
    varied = [
        SamplerSetting(
            num_steps=(steps := pick((6, 8, 12, 16, 20))),
            guidance=1.5 + 5.5 * torch.rand(count, generator=generator),
            noise_level=0.3 + 0.5 * float(torch.rand((), generator=generator)),
            noisy_steps=pick((0, 0, steps // 2)),
        )
        for _ in range(GROUP - _SAME)
    ]
    return [rollout] * _SAME + varied


class _ShardBuilder:
    """Makes the shards of one set; each is written once and found again after an interruption."""

    def __init__(self, pipeline: StableDiffusion3Pipeline, folder: Path, seed: int) -> None:
        self.pipeline = pipeline
        self.folder = folder
        self.seed = seed
        self.negative = encode_texts(pipeline, [""])
        folder.mkdir(parents=True, exist_ok=True)

    def build(self, name: str, number: int, scenes: list[Scene], *, edited: bool) -> dict[str, torch.Tensor]:
        path = self.folder / f"{name}-{number:03d}.safetensors"
        if path.exists():
            return load_file(path)
        began = time.monotonic()
        salt = sum(map(ord, name))
        generator = torch.Generator().manual_seed((self.seed * 1_009 + salt) * 1_000_003 + number)
        with torch.autocast("cpu", torch.bfloat16):  # a third of the time; its error is under half a grey level
            latents = self._renderings(scenes, generator) if edited else self._samples(scenes, generator)
            latents = latents.half().contiguous()
            images = torch.cat([decode(self.pipeline.vae, part) for part in latents.split(_DECODE_BATCH)])
        images = (255 * images).round().to(torch.uint8).contiguous()  # small batches come channels last
        judged = oracle.score(images / 255, scenes * GROUP)
        shard = {
            "latents": latents,
            "images": images,
            "parts": torch.stack([judged.parts()[part] for part in oracle.PARTS], 1),
            "total": judged.total,
            "seconds": torch.tensor([time.monotonic() - began]),
        }
        save_tensors(path, shard)
        return shard

    def _samples(self, scenes: list[Scene], generator: torch.Generator) -> torch.Tensor:
        text = encode_texts(self.pipeline, [str(scene) for scene in scenes])
        net, shift = self.pipeline.transformer, self.pipeline.scheduler.config.shift
        rounds = [
            sample_latents(net, text, self.negative, setting, generator, shift=shift)
            for setting in settings(len(scenes), generator)
        ]
        return torch.cat(rounds)

    def _renderings(self, scenes: list[Scene], generator: torch.Generator) -> torch.Tensor:
        images = edited_images(scenes, generator)
        with torch.no_grad():
            return torch.cat([scaled_latents(self.pipeline.vae, part) for part in images.split(_DECODE_BATCH)])


def build_table(
    pipeline: StableDiffusion3Pipeline, folder: Path, *, test: bool, seed: int, plan: SetPlan
) -> SampleTable:
    """Draw (or read back from `folder`) the samples of one split and judge them."""
    split = "test" if test else "train"
    counts = (plan.policy_test, plan.edited_test) if test else (plan.policy_train, plan.edited_train)
    builder = _ShardBuilder(pipeline, folder, seed)
    scenes: list[Scene] = []
    columns: dict[str, list[torch.Tensor]] = {}
    jobs = []
    for kind, (name, count) in enumerate(zip(KINDS, counts, strict=True)):
        chosen = choose_scenes(count, test=test, generator=torch.Generator().manual_seed(seed * 10 + 2 * kind + test))
        jobs += [(kind, name, i, chosen[i * _CHUNK : (i + 1) * _CHUNK]) for i in range(-(-count // _CHUNK))]
    for kind, name, number, chunk in tqdm(jobs, desc=f"preferences {split}", mininterval=5):
        shard = builder.build(f"{split}-{name}", number, chunk, edited=kind == 1)
        size = GROUP * len(chunk)
        shard["prompt"] = (len(scenes) + torch.arange(len(chunk))).repeat(GROUP)
        shard["kind"] = torch.full((size,), kind)
        shard["same"] = torch.arange(size) < _SAME * len(chunk) if kind == 0 else torch.zeros(size, dtype=torch.bool)
        for key, value in shard.items():
            columns.setdefault(key, []).append(value)
        scenes += chunk
    prompts = tuple(str(scene) for scene in scenes)
    whole = {key: torch.cat(values) for key, values in columns.items()}
    seconds = float(whole.pop("seconds").sum())
    return SampleTable(prompts=prompts, text=encode_texts(pipeline, list(prompts)), seconds=seconds, **whole)


def ranked_pairs(table: SampleTable, *, margin: float) -> PairTable:
    """All pairs within the groups whose oracle totals differ by at least `margin`; the label is that ranking alone.

    The source of a pair tells how its samples were made (see SOURCES), its category that and what they differ in most.
    """
    order = torch.argsort(table.prompt, stable=True).reshape(-1, GROUP)  # a prompt's row stands for one group
    first, second = torch.triu_indices(GROUP, GROUP, 1)
    left, right = order[:, first].flatten(), order[:, second].flatten()
    gap = table.total[left] - table.total[right]
    keep = gap.abs() >= margin
    left, right, gap = left[keep], right[keep], gap[keep]
    winner, loser = torch.where(gap > 0, left, right), torch.where(gap > 0, right, left)
    weight = torch.tensor([oracle.WEIGHTS[part] for part in oracle.PARTS])
    part = ((table.parts[winner] - table.parts[loser]) * weight).argmax(1)
    kind = table.kind[winner]
    same = table.same[winner] & table.same[loser]
    return PairTable(
        winner=winner,
        loser=loser,
        tie=torch.zeros(len(winner), dtype=torch.bool),
        weight=torch.ones(len(winner)),
        comparison=table.prompt[winner],
        source=torch.where(kind == KINDS.index("edited"), 2, torch.where(same, 0, 1)),
        category=kind * len(oracle.PARTS) + part,
        sources=SOURCES,
        categories=tuple(f"{name}/{part}" for name in KINDS for part in oracle.PARTS),
    )
