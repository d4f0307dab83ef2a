"""What a scan of the sources found, as positions and numbers in memory and texts on disk."""

from __future__ import annotations

import hashlib
import json
from array import array
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import torch

from flowrl.core.buckets import BucketPlan
from flowrl.core.seeds import derive
from rewards.data.comparison import ImageRef
from rewards.data.mixture import ScannedComparison
from rewards.data.pairs import PairTable
from rewards.data.statistics import Losses
from rewards.data.store import PROMPTS

_IMAGES = "images.jsonl"


class _LineFile:
    """Lines of JSON on disk of which only the positions are held."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb+")
        self._starts = array("q")

    def append(self, value: object) -> int:
        self._starts.append(self._file.tell())
        self._file.write(json.dumps(value, ensure_ascii=True).encode() + b"\n")
        return len(self._starts) - 1

    def __len__(self) -> int:
        return len(self._starts)

    def flush(self) -> None:
        self._file.flush()

    def digest(self) -> bytes:
        with self._path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()

    def read(self, number: int) -> object:
        with self._path.open("rb") as file:
            file.seek(self._starts[number])
            return json.loads(file.readline())


class ScanIndex:
    """The samples, prompts and pairs of a set that is being prepared.

    A sample is an image under a prompt: one file under one prompt is one sample, however often it is compared.
    """

    def __init__(self, folder: Path, buckets: BucketPlan) -> None:
        self._buckets = buckets
        self._size_of: dict[tuple[int, int], int] = {}
        self._bucket_of: dict[tuple[int, int], int] = {}  # of an image's own size
        self._sample_of: dict[int, int] = {}  # by hash
        self._prompt_of: dict[int, int] = {}
        self._images = _LineFile(folder / _IMAGES)
        self._prompts = _LineFile(folder / PROMPTS)
        self._sample_prompt, self._sample_size = array("q"), array("q")
        self._columns = {name: array("d") for name in PairTable.COLUMNS}  # whole numbers are exact up to 2^53
        self._comparisons = 0
        self._category_of: dict[str, int] = {}

    def add(self, found: ScannedComparison) -> None:
        """Take in one comparison."""
        comparison = found.comparison
        prompt = self._prompt(comparison.prompt)
        samples = [
            self._sample(prompt, image, size) for image, size in zip(comparison.images, found.sizes, strict=True)
        ]
        category = self._category_of.setdefault(comparison.category, len(self._category_of))
        for pair in found.pairs:
            values = {
                "winner": samples[pair.winner],
                "loser": samples[pair.loser],
                "tie": pair.is_tie,
                "weight": comparison.weight,
                "comparison": self._comparisons,
                "source": found.source,
                "category": category,
            }
            for name, value in values.items():
                self._columns[name].append(value)
        self._comparisons += 1

    def _prompt(self, text: str) -> int:
        key = derive("prompt", text)
        if key not in self._prompt_of:
            self._prompt_of[key] = self._prompts.append(text)
        return self._prompt_of[key]

    def _sample(self, prompt: int, image: ImageRef, size: tuple[int, int]) -> int:
        key = derive("sample", prompt, image.identity)
        if key not in self._sample_of:
            if size not in self._bucket_of:
                bucket = self._buckets.size_for(*size)
                self._bucket_of[size] = self._size_of.setdefault(bucket, len(self._size_of))
            self._sample_of[key] = self._images.append(asdict(image))
            self._sample_prompt.append(prompt)
            self._sample_size.append(self._bucket_of[size])
        return self._sample_of[key]

    def close(self) -> None:
        """The scan has ended: what is on disk is whole."""
        self._images.flush()
        self._prompts.flush()
        self._sample_of.clear()
        self._prompt_of.clear()

    def digest(self) -> str:
        """Of all that was found: two scans that found the same have the same."""
        numbers = [self._sample_prompt.tobytes(), self._sample_size.tobytes()]
        numbers += [column.tobytes() for column in self._columns.values()]
        parts = [self._images.digest(), self._prompts.digest(), repr(self.sizes).encode(), *numbers]
        return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()

    @property
    def num_samples(self) -> int:
        """How many different images under their prompts there are."""
        return len(self._images)

    @property
    def num_prompts(self) -> int:
        """How many different prompts there are."""
        return len(self._prompts)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """The buckets in use, (height, width)."""
        return list(self._size_of)

    @property
    def categories(self) -> list[str]:
        """The categories in use."""
        return list(self._category_of)

    @cached_property
    def size(self) -> torch.Tensor:
        """The bucket [N] int64 of each sample, once the scan has ended."""
        return torch.tensor(self._sample_size, dtype=torch.int64)

    def samples_of_size(self, number: int) -> torch.Tensor:
        """The samples of one bucket, in the order in which they were found."""
        return (self.size == number).nonzero()[:, 0]

    def image(self, sample: int) -> ImageRef:
        """Where the image of a sample is."""
        found = self._images.read(sample)
        assert isinstance(found, dict)
        return ImageRef(**found)

    def prompt(self, number: int) -> str:
        """A prompt's text."""
        return str(self._prompts.read(number))

    def losses(self, *, broken: set[int], cut: set[int], num_sources: int) -> list[Losses]:
        """For each source, how many images of broken samples stand in its pairs, how many pairs go with them, and how
        many of the prompts of its pairs are cut.
        """
        winner, loser, source, tie = (
            torch.tensor(self._columns[name]).long() for name in ("winner", "loser", "source", "tie")
        )
        both, bad = torch.stack([winner, loser]), torch.tensor(sorted(broken), dtype=torch.int64)
        is_bad = torch.isin(both, bad)
        prompt, cut_ones = torch.tensor(self._sample_prompt)[winner], torch.tensor(sorted(cut), dtype=torch.int64)
        found = []
        for number in range(num_sources):
            own = is_bad.any(0) & (source == number)
            samples = both[:, own][is_bad[:, own]].unique().tolist()
            images = len({self.image(sample).identity for sample in samples})
            ties = int(tie[own].sum())
            cut_prompts = int(torch.isin(prompt[source == number].unique(), cut_ones).sum())
            found.append(Losses(images=images, pairs=int(own.sum()) - ties, ties=ties, cut_prompts=cut_prompts))
        return found

    def tables(self, place: tuple[torch.Tensor, torch.Tensor], *, broken: set[int]) -> dict[str, torch.Tensor]:
        """The columns of tables.safetensors, without the pairs of samples that are broken."""
        columns = {name: torch.tensor(values, dtype=torch.float64) for name, values in self._columns.items()}
        dtypes = {"tie": torch.bool, "weight": torch.float32}
        columns = {name: values.to(dtypes.get(name, torch.int64)) for name, values in columns.items()}
        if broken:
            bad = torch.tensor(sorted(broken))
            keep = ~(torch.isin(columns["winner"], bad) | torch.isin(columns["loser"], bad))
            columns = {name: values[keep] for name, values in columns.items()}
        return {
            "sample_shard": place[0],
            "sample_row": place[1],
            "sample_prompt": torch.tensor(self._sample_prompt, dtype=torch.int64),
            "sample_shape": self.size,
            **{f"pair_{name}": values for name, values in columns.items()},
        }
