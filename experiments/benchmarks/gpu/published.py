"""The figures of Table 2 of arXiv 2606.23626, which says neither hardware nor resolution, batch or precision."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.benchmarks.gpu import case_names


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """A row of the table, and the paths measured here that come nearest to it."""

    model: str
    milliseconds: float  # per image
    gigabytes: float  # peak memory
    ours: tuple[str, ...]


TABLE_2 = (
    PublishedRow(
        model="DiT-Reward, pixel",
        milliseconds=154,
        gigabytes=27.2,
        ours=(case_names.PIXEL, case_names.DECODED),
    ),
    PublishedRow(
        model="HPSv3, pixel",
        milliseconds=89,
        gigabytes=16.0,
        ours=(case_names.HPSV3, case_names.HPSV3_DECODED),
    ),
    PublishedRow(model="DiT-Reward, latent", milliseconds=54, gigabytes=16.1, ours=(case_names.LATENT,)),
)
