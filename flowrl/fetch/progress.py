"""Progress bars: on a terminal, below the line that names the file; nowhere else."""

from __future__ import annotations

from tqdm import tqdm

_FORMAT = "    {desc} {percentage:3.0f}% {bar} {n_fmt}B of {total_fmt}B, {rate_fmt}, {remaining} left"


class ArrivalBar(tqdm):
    """The bar of a download, made with the arguments that huggingface_hub gives; the file is named above it."""

    def __init__(self, *, unit: str, unit_scale: bool, total: int | None, initial: int, desc: str) -> None:
        super().__init__(
            desc="arrived",
            total=total,
            initial=initial,
            unit=unit,
            unit_scale=unit_scale,
            leave=False,
            disable=None,  # left out where standard error is no terminal
            dynamic_ncols=True,
            bar_format=_FORMAT if total else None,
        )


class ReadingBar(ArrivalBar):
    """The bar of a checksum over `total` bytes."""

    def __init__(self, total: int) -> None:
        super().__init__(unit="B", unit_scale=True, total=total, initial=0, desc="")
        self.set_description_str("verified", refresh=False)
