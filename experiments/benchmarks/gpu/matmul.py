"""The rate of a large matrix product in bfloat16: what all other rates are a share of."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from experiments.benchmarks.gpu.record import Case
from experiments.benchmarks.gpu.setting import Setting
from experiments.benchmarks.gpu.timing import measure

_IN_A_ROW = 10  # products, so that starting one takes no part of the time


def run(setting: Setting) -> Iterator[Case]:
    """One case, of normal numbers: a product of zeros is faster."""
    side = setting.sizes.matmul
    draw = torch.Generator(setting.device).manual_seed(0)
    left, right = (
        torch.randn(side, side, generator=draw, device=setting.device, dtype=torch.bfloat16) for _ in range(2)
    )
    out = torch.empty_like(left)

    def products() -> None:
        for _ in range(_IN_A_ROW):
            torch.mm(left, right, out=out)

    yield measure(f"{_IN_A_ROW} products of {side} x {side}", products, setting, repeats=5)
