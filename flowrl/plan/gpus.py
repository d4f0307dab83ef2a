"""The GPUs that a plan knows: memory, and how fast they multiply at best."""

from __future__ import annotations

from dataclasses import dataclass

from flowrl.base.config_tree import did_you_mean
from flowrl.base.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A kind of GPU, from its maker's data sheet.

    Example: ``Gpu(name="h100", title="H100 SXM 80 GB", memory=80 * 10**9, flops=989e12, float32_flops=67e12)``
    """

    name: str
    title: str
    memory: int  # bytes
    flops: float  # per second, dense products of 16-bit numbers accumulated in float32
    float32_flops: (
        float  # per second, of float32 without tensor cores, as torch multiplies it unless it is told otherwise
    )

    def rate(self, dtype: str) -> float:
        """FLOP/s for a model of this dtype."""
        return self.float32_flops if dtype == "float32" else self.flops


def _table(*gpus: tuple[str, str, int, float, float]) -> dict[str, Gpu]:
    return {
        name: Gpu(name=name, title=title, memory=gigabytes * 10**9, flops=tera * 1e12, float32_flops=single * 1e12)
        for name, title, gigabytes, tera, single in gpus
    }


GPUS = _table(
    ("a100-40", "A100 40 GB", 40, 312, 19.5),
    ("a100", "A100 80 GB", 80, 312, 19.5),
    ("h100", "H100 SXM 80 GB", 80, 989, 67),
    ("h100-pcie", "H100 PCIe 80 GB", 80, 756, 51),
    ("h200", "H200 141 GB", 141, 989, 67),
    ("h20", "H20 96 GB", 96, 148, 44),
    ("b200", "B200 180 GB", 180, 2250, 75),
    ("l40s", "L40S 48 GB", 48, 362, 91.6),
    ("a6000", "RTX A6000 48 GB", 48, 155, 38.7),
    ("rtx4090", "RTX 4090 24 GB", 24, 165, 82.6),
    ("rtx5090", "RTX 5090 32 GB", 32, 210, 105),
)


def find_gpu(name: str) -> Gpu:
    """The kind of GPU called `name`; raises UserError when none is."""
    if name not in GPUS:
        raise UserError(f"--gpu {name!r} is not known; {did_you_mean(name, list(GPUS))}")
    return GPUS[name]
