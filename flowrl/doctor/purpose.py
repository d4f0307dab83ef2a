"""What a machine is examined for, as far as checks of the machine depend on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flowrl.doctor.finding import Finding, note, problem
from flowrl.doctor.machine import Machine

if TYPE_CHECKING:
    from flowrl.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Purpose:
    """What the run will use; without a run, whatever the machine has."""

    gpus: bool
    ray: bool

    def of_gpus(self, found: str, advice: str) -> Finding:
        """A problem where GPUs are used, else a note."""
        return problem(found, advice) if self.gpus else note(found, advice)


def purpose_of(config: RunConfig | None, machine: Machine) -> Purpose:
    """What a run will use, or without one, all that the machine has."""
    has_some = machine.graphics.on_bus > 0 or (machine.torch is not None and machine.torch.usable_gpus > 0)
    if config is None:
        return Purpose(gpus=has_some, ray=True)
    placement = config.placement
    elsewhere = placement.ray_address != "local" and not has_some  # the first node may have none itself
    return Purpose(gpus=placement.device == "cuda" and not elsewhere, ray=placement.mode != "local")
