"""A prepared preference set on disk: samples as a reward reads them, text conditions, and the pairs.

A folder with `store.json`, `prompts.jsonl`, `tables.safetensors` and the shards `samples/NNNNN.safetensors` and
`conditions/NNNNN.safetensors`. All samples of a shard have one shape. Shards are mapped, not read, so a set may be
larger than memory; `store.json` is written last, and a folder without it is not whole.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from flowrl.base.atomic_file import write_atomically
from flowrl.base.errors import CheckpointError
from flowrl.base.weight_files import check_safetensors, read_json
from flowrl.types import TextCondition
from rewards.data.pairs import PairTable

FORMAT, VERSION = "flowrl_preferences", 1
INFO, PROMPTS, TABLES = "store.json", "prompts.jsonl", "tables.safetensors"
MARKS = "sample_mark"
_COLUMNS = {"sample_shard", "sample_row", "sample_prompt", "sample_shape"} | {f"pair_{c}" for c in PairTable.COLUMNS}
_OPEN_SHARDS = 512  # mapped at once; a process may have some 65,000 mappings


@dataclass(frozen=True, kw_only=True)
class StoreInfo:
    """What store.json says; `encoders` and the numbers of samples and prompts are there for a person who opens it.

    Example: a set prepared for SD3.5 at 256 T5 tokens has ``latent_space="vae16x8-scale1.5305-shift0.0609"`` and
    ``text_length=333``.
    """

    holds: tuple[str, ...]  # of "latents" and "pixels"
    latent_space: str  # empty without latents
    text_length: int  # tokens of a text condition; 0 without latents
    encoders: str  # whose VAE and text encoders; empty without latents
    conditions_per_shard: int
    sources: tuple[str, ...]  # what PairTable.source indexes
    categories: tuple[str, ...]  # what PairTable.category indexes
    num_samples: int
    num_prompts: int


def shard_path(folder: Path, kind: str, number: int) -> Path:
    """The file of shard `number` of "samples" or "conditions"."""
    return folder / kind / f"{number:05d}.safetensors"


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a file of tensors that is whole or absent, also after a crash."""
    write_atomically(path, save({key: value.contiguous() for key, value in tensors.items()}, metadata))


def save_info(folder: Path, info: StoreInfo) -> None:
    """Write store.json, which makes the folder whole."""
    text = json.dumps({"format": FORMAT, "version": VERSION, **dataclasses.asdict(info)}, indent=2)
    write_atomically(folder / INFO, f"{text}\n".encode())


def load_info(folder: Path) -> StoreInfo:
    """Read store.json; raises CheckpointError when the folder is not a whole prepared set of this version."""
    if not (folder / INFO).is_file():
        raise CheckpointError(f"{folder}: not a prepared preference set, or not a whole one: it has no {INFO}")
    settings = read_json(folder / INFO)
    if (settings.pop("format", None), settings.pop("version", None)) != (FORMAT, VERSION):
        raise CheckpointError(f"{folder / INFO}: must say format {FORMAT!r} and version {VERSION}; prepare it again")
    known = {field.name for field in dataclasses.fields(StoreInfo)}
    if settings.keys() != known:
        missing, unknown = sorted(known - settings.keys()), sorted(settings.keys() - known)
        raise CheckpointError(f"{folder / INFO}: missing keys {missing}, unknown keys {unknown}; prepare it again")
    for key in ("holds", "sources", "categories"):
        settings[key] = tuple(settings[key])
    return StoreInfo(**settings)


class PreferenceStore:
    """A whole prepared set, open for reading; raises CheckpointError when its files are missing or torn."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.info = load_info(folder)
        check_safetensors(folder / TABLES)
        tables = load_file(folder / TABLES)
        if missing := sorted(_COLUMNS - tables.keys()):
            raise CheckpointError(f"{folder / TABLES}: has no {', '.join(missing)}; prepare the set again")
        self.shard, self._row = tables["sample_shard"], tables["sample_row"]  # [N] int64 each
        self.prompt = tables["sample_prompt"]  # [N] int64, row of `prompts`
        self.shape = tables["sample_shape"]  # [N] int64: samples of one number have one shape
        self.mark = tables.get(MARKS)  # [N] int64, equal for equal images; None: the set does not say
        self.pairs = PairTable(
            **{field: tables[f"pair_{field}"] for field in PairTable.COLUMNS},
            sources=self.info.sources,
            categories=self.info.categories,
        )
        self._open: OrderedDict[Path, dict[str, torch.Tensor]] = OrderedDict()

    @cached_property
    def prompts(self) -> list[str]:
        """All texts."""
        lines = (self.folder / PROMPTS).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    @property
    def stamp(self) -> str:
        """What another set at the same path has otherwise: when the tables were written, and their size."""
        stat = (self.folder / TABLES).stat()
        return f"{stat.st_size}.{stat.st_mtime_ns}"

    @cached_property
    def digest(self) -> str:
        """What another set has otherwise, and one that is made anew of the same sources has not: pairs, prompts, and
        the marks of the images where the set has them; latents are not read.
        """
        info = self.info
        kept = (info.holds, info.latent_space, info.text_length, info.sources, info.categories)
        found = hashlib.sha256(repr(kept).encode())
        for name, table in sorted(load_file(self.folder / TABLES).items()):
            found.update(f"{name} {table.dtype} {tuple(table.shape)}".encode())
            found.update(table.contiguous().numpy().tobytes())
        found.update((self.folder / PROMPTS).read_bytes())
        return found.hexdigest()

    def require(self, name: str) -> None:
        """Raise CheckpointError unless the set holds samples as `name`: "latents" or "pixels"."""
        if name not in self.info.holds:
            raise CheckpointError(f"{self.folder}: holds {' and '.join(self.info.holds)}, not {name}; prepare it again")

    def check_finite(self, samples: torch.Tensor) -> None:
        """Raise CheckpointError naming the first file in which numbers of samples [B] or of their prompts are not
        finite.
        """
        size = self.info.conditions_per_shard
        for sample in samples.tolist():
            prompt = int(self.prompt[sample])
            places = [("samples", int(self.shard[sample]), int(self._row[sample]))]
            if self.info.text_length:
                places.append(("conditions", prompt // size, prompt % size))
            for kind, number, row in places:
                if not all(bool(tensor[row].isfinite().all()) for tensor in self._shard(kind, number).values()):
                    raise CheckpointError(
                        f"{shard_path(self.folder, kind, number)}: damaged: row {row} holds numbers that are not "
                        f"finite; copy the file again, or remove {self.folder} and prepare it anew"
                    )

    def texts(self, samples: torch.Tensor) -> tuple[str, ...]:
        """The prompts of samples [B]."""
        return tuple(self.prompts[row] for row in self.prompt[samples].tolist())

    def tensors(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """The "latents" [B, C, h, w] float32 or "pixels" [B, 3, H, W] float32 in [0, 1] of samples of one shape."""
        self.require(name)
        found = []
        for shard, row in zip(self.shard[rows].tolist(), self._row[rows].tolist(), strict=True):
            found.append(self._shard("samples", shard)[name][row])
        stacked = torch.stack(found)
        return stacked.float() / 255 if name == "pixels" else stacked.float()

    def conditions(self, prompts: torch.Tensor) -> TextCondition:
        """The text conditions of prompts [B], as one batch: embeds [B, L, D], pooled [B, P]."""
        size = self.info.conditions_per_shard
        shards = [self._shard("conditions", number // size) for number in prompts.tolist()]
        rows = [number % size for number in prompts.tolist()]
        return TextCondition(
            embeds=torch.stack([shard["embeds"][row] for shard, row in zip(shards, rows, strict=True)]),
            pooled=torch.stack([shard["pooled"][row] for shard, row in zip(shards, rows, strict=True)]),
        )

    def _shard(self, kind: str, number: int) -> dict[str, torch.Tensor]:
        path = shard_path(self.folder, kind, number)
        if path not in self._open:
            check_safetensors(path)
            self._open[path] = load_file(path)
            if len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(path)
        return self._open[path]
