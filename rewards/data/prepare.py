"""Makes a prepared preference set from its sources, once: images to latents, prompts to text conditions, in shards.

The sources are scanned, then shards are written one by one; what an interrupted run has written is found again. Only
hashes, positions and numbers of what was scanned are held in memory.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tqdm import tqdm

from flowrl.base.amounts import size
from flowrl.base.atomic_file import write_atomically
from flowrl.base.config_tree import ConfigError
from flowrl.base.errors import UserError
from flowrl.base.folder_lock import take_lock, wait_for_lock
from flowrl.core.buckets import BucketPlan, fit
from flowrl.types import TextCondition
from rewards.data.images import BadImage, ImageReader, image_mark
from rewards.data.mixture import MixtureScan
from rewards.data.scan_index import ScanIndex
from rewards.data.set_origin import check_files, check_folder, choices, settle
from rewards.data.source import DataSource
from rewards.data.source_files import source_stamps
from rewards.data.statistics import MixtureStatistics
from rewards.data.store import INFO, MARKS, PROMPTS, TABLES, StoreInfo, save_info, save_tensors, shard_path

_PER_SHARD = 256  # samples or prompts
_NAMED = 20  # broken images
_STATISTICS, _BROKEN = "statistics.json", "broken.json"
_MARKS = "marks"  # in a shard
_SPARE = 256 * 2**20  # bytes that must stay free


@dataclass(frozen=True, kw_only=True)
class Encoders:
    """What turns images and prompts into what a reward reads; without a VAE images are kept as they are.

    Example: for a pixel reward ``Encoders(name="", latent_space="", image=None, text=None, dtype=torch.float16)``
    """

    name: str
    latent_space: str
    image: Callable[[torch.Tensor], torch.Tensor] | None  # pixels [B, 3, H, W] in [0, 1] to latents [B, C, h, w]
    text: Callable[[str], TextCondition] | None
    dtype: torch.dtype
    cuts: Callable[[str], bool] | None = None  # whether a prompt is too long for `text`; None counts none

    @cached_property
    def text_length(self) -> int:
        """Tokens of a text condition; 0 without a text encoder."""
        return 0 if self.text is None else int(self.text("").embeds.shape[1])


def prepare(
    folder: Path,
    sources: list[DataSource],
    encoders: Encoders,
    buckets: BucketPlan,
    *,
    encode_batch: int,
    max_bad_share: float,
    part: int = 0,
    num_parts: int = 1,
) -> bool:
    """Fill `folder` with a whole prepared set, or go on with filling it; returns whether it is whole now.

    Several processes may fill one folder, each a part of the shards; the last to end makes it whole.
    Writes statistics.json and statistics.md of what was used. Raises UserError when the sources are too broken or
    empty, the disk is too small, or the folder was begun with other settings or made of what the sources held before.
    """
    settings = choices(sources, buckets, encoders.dtype) | _made_by(encoders)
    check_folder(folder, settings)
    if (folder / INFO).is_file():
        check_files(folder, sources)
        return True
    files = [source_stamps(source) for source in sources]
    own = folder / f".scan-{part}"
    own.mkdir(exist_ok=True)
    with take_lock(own, "data.store") or nullcontext():
        scan = MixtureScan(sources, max_bad_share=max_bad_share)
        index = ScanIndex(own, buckets)
        for found in tqdm(scan, desc=f"scanning for {folder.name}", unit=" comparisons", mininterval=2):
            index.add(found)
        index.close()
        settle(folder, settings, index.digest(), files)
        work = _Shards(folder, own, index, encoders, encode_batch)
        work.write_samples(part, num_parts)
        work.write_conditions(part, num_parts)
        whole = work.are_whole()
        if whole:
            with wait_for_lock(folder):  # another part may have ended at the same time
                if not (folder / INFO).is_file():
                    broken = work.broken()
                    cut = _cut_prompts(index, encoders)
                    losses = index.losses(broken=set(map(int, broken)), cut=cut, num_sources=len(sources))
                    statistics = scan.statistics.after(losses)
                    _check_broken(folder, broken, statistics, max_bad_share)
                    write_atomically(folder / PROMPTS, (own / PROMPTS).read_bytes())
                    _make_whole(folder, statistics, index, work, encoders, broken)
                    _remove_leavings(folder)
        shutil.rmtree(own)
    return whole


def _cut_prompts(index: ScanIndex, encoders: Encoders) -> set[int]:
    """The prompts whose end the text encoder does not see."""
    if encoders.cuts is None:
        return set()
    return {number for number in range(index.num_prompts) if encoders.cuts(index.prompt(number))}


def _check_broken(folder: Path, broken: dict[str, str], statistics: MixtureStatistics, max_bad_share: float) -> None:
    for one in statistics.sources:
        if one.lost.images > max_bad_share * one.images:
            raise UserError(
                f"{folder}: {one.lost.images} of {one.images:,} images of {one.name} are broken, more than "
                f"data.max_bad_share={max_bad_share:g}; raise it, or mend them, remove the folder and prepare again. "
                f"The first of all sources: {'; '.join(list(broken.values())[:3])}"
            )


def _make_whole(
    folder: Path,
    statistics: MixtureStatistics,
    index: ScanIndex,
    work: _Shards,
    encoders: Encoders,
    broken: dict[str, str],
) -> None:
    """Write what stands beside the shards, store.json last."""
    write_atomically(folder / _STATISTICS, statistics.to_json().encode())
    write_atomically(folder / "statistics.md", (statistics.to_markdown() + _lost(broken)).encode())
    write_atomically(folder / _BROKEN, f"{json.dumps(broken, indent=1)}\n".encode())
    tables = index.tables(work.place(), broken=set(map(int, broken)))
    save_tensors(folder / TABLES, tables | {MARKS: work.marks()})
    save_info(
        folder,
        StoreInfo(
            holds=("latents",) if encoders.image else ("pixels",),
            latent_space=encoders.latent_space,
            text_length=encoders.text_length,
            encoders=encoders.name,
            conditions_per_shard=_PER_SHARD,
            sources=tuple(statistic.name for statistic in statistics.sources),
            categories=tuple(index.categories),
            num_samples=index.num_samples,
            num_prompts=index.num_prompts,
        ),
    )


def _remove_leavings(folder: Path) -> None:
    """Remove what parts that were killed had to themselves; a part at work holds its lock, and keeps it."""
    for left in folder.glob(".scan-*"):
        with suppress(ConfigError):
            lock = take_lock(left, "data.store")
            if lock is not None:
                with lock:
                    shutil.rmtree(left)


def _lost(broken: dict[str, str]) -> str:
    """The names of what the scan could not see: images that break off after their header."""
    if not broken:
        return ""
    names = "\n".join(f"- {reason}" for reason in list(broken.values())[:_NAMED])
    return (
        "\n## Images that could not be read to their end\n\n"
        f"{len(broken)} images under their prompts, found when they were encoded. They and their pairs are what the "
        f"first table calls lost. All of them: {_BROKEN}. The first:\n\n{names}\n"
    )


class _Shards:
    """Writes the shards of one set; each is written once and found again after an interruption.

    They are written in `own`, a folder of this process alone, and then moved to their place.
    """

    def __init__(self, folder: Path, own: Path, index: ScanIndex, encoders: Encoders, encode_batch: int) -> None:
        self._folder, self._own, self._index, self._encoders, self._batch = folder, own, index, encoders, encode_batch
        self._shards = [
            rows for number in range(len(index.sizes)) for rows in index.samples_of_size(number).split(_PER_SHARD)
        ]
        self._reader = ImageReader()

    def place(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Shard and row [N] int64 of every sample."""
        shard = torch.empty(self._index.num_samples, dtype=torch.int64)
        row = torch.empty_like(shard)
        for number, rows in enumerate(self._shards):
            shard[rows], row[rows] = number, torch.arange(len(rows))
        return shard, row

    def write_samples(self, part: int, num_parts: int) -> None:
        """One shard after the other, all samples of one having one size."""
        mine = range(part, len(self._shards), num_parts)
        for number in tqdm(mine, desc="images", unit="shard", mininterval=2):
            path, rows = shard_path(self._folder, "samples", number), self._shards[number]
            if path.is_file():
                continue
            size = self._index.sizes[int(self._index.size[rows[0]])]
            parts, broken, marks = [], {}, torch.zeros(len(rows), dtype=torch.int64)
            for start in range(0, len(rows), self._batch):
                batch = rows[start : start + self._batch].tolist()
                pixels = torch.zeros(len(batch), 3, *size)
                for place, sample in enumerate(batch):
                    try:
                        image = self._reader.pixels(self._index.image(sample))
                        pixels[place], marks[start + place] = fit(image, size), image_mark(image)
                    except BadImage as error:
                        broken[str(sample)] = str(error)
                parts.append(self._encoded(pixels))
            name = "latents" if self._encoders.image else "pixels"
            self._write(path, {name: torch.cat(parts), _MARKS: marks}, broken)

    def _encoded(self, pixels: torch.Tensor) -> torch.Tensor:
        if self._encoders.image is None:
            return (255 * pixels).round().to(torch.uint8)
        return self._encoders.image(pixels).to("cpu", self._encoders.dtype)

    def write_conditions(self, part: int, num_parts: int) -> None:
        """The text conditions of all prompts."""
        if self._encoders.text is None:
            return
        for number in tqdm(range(part, self._num_texts, num_parts), desc="prompts", unit="shard", mininterval=2):
            path = shard_path(self._folder, "conditions", number)
            if path.is_file():
                continue
            last = min((number + 1) * _PER_SHARD, self._index.num_prompts)
            found = [self._encoders.text(self._index.prompt(row)) for row in range(number * _PER_SHARD, last)]
            embeds = torch.cat([one.embeds for one in found]).to("cpu", self._encoders.dtype)
            pooled = torch.cat([one.pooled for one in found]).to("cpu", self._encoders.dtype)
            self._write(path, {"embeds": embeds, "pooled": pooled}, {})

    @property
    def _num_texts(self) -> int:
        """How many shards of conditions there are."""
        return -(-self._index.num_prompts // _PER_SHARD) if self._encoders.text is not None else 0

    def are_whole(self) -> bool:
        """Whether every shard is there, whoever wrote it."""
        counts = {"samples": len(self._shards), "conditions": self._num_texts}
        return all(
            shard_path(self._folder, kind, number).is_file()
            for kind, count in counts.items()
            for number in range(count)
        )

    def _write(self, path: Path, tensors: dict[str, torch.Tensor], broken: dict[str, str]) -> None:
        needed = sum(value.numel() * value.element_size() for value in tensors.values())
        path.parent.mkdir(exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if free < needed + _SPARE:
            raise UserError(f"{path}: needs {size(needed)}, but {size(free)} are free; make room")
        aside = self._own / path.name
        save_tensors(aside, tensors, {"broken": json.dumps(broken)})
        aside.replace(path)

    def marks(self) -> torch.Tensor:
        """The mark [N] int64 of every sample's image, from the shards."""
        found = torch.empty(self._index.num_samples, dtype=torch.int64)
        for number, rows in enumerate(self._shards):
            with safe_open(shard_path(self._folder, "samples", number), framework="pt") as file:
                found[rows] = file.get_tensor(_MARKS)
        return found

    def broken(self) -> dict[str, str]:
        """The samples whose pixels could not be read, by number, and why; from the shards' headers."""
        found: dict[str, str] = {}
        for number in range(len(self._shards)):
            with safe_open(shard_path(self._folder, "samples", number), framework="pt") as file:
                found |= json.loads(file.metadata()["broken"])
        return found


def _made_by(encoders: Encoders) -> dict[str, Any]:
    return {
        "encoders": encoders.name,
        "latent_space": encoders.latent_space,
        "text_length": encoders.text_length,
    }
