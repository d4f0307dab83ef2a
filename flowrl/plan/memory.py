"""The memory of the actors of a run and of the devices that they share, in bytes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from flowrl.config import PlacementSection
from flowrl.plan.gpus import Gpu

# Of a GPU's memory: the CUDA context, the allocator's rounding and gaps, the workspaces of kernels.
_RESERVED = 0.08
_CONTEXT = 500 * 10**6  # bytes of the CUDA context of each further process on a device


@dataclass(frozen=True, kw_only=True)
class MemoryPart:
    """What takes memory on the device of a role."""

    name: str
    size: int  # bytes
    leaves: bool = False  # with placement.offload, while the role has nothing to do


@dataclass(frozen=True, kw_only=True)
class RoleMemory:
    """The memory of one actor of a role: what it holds all the time and the highest of what it does in turn."""

    role: str
    seats: tuple[int, ...]  # the number of the device of each actor
    held: tuple[MemoryPart, ...]
    in_turn: tuple[MemoryPart, ...]
    not_counted: str = ""  # what else the role has, of which nothing is known here

    @property
    def actors(self) -> int:
        """How many there are."""
        return len(self.seats)

    @property
    def peak(self) -> int:
        """Bytes."""
        return sum(part.size for part in self.held) + max((part.size for part in self.in_turn), default=0)

    @property
    def stays(self) -> int:
        """The bytes of it that stay where the roles have a device in turn."""
        return sum(part.size for part in self.held if not part.leaves)

    @property
    def leaves(self) -> int:
        """The bytes of it that are in the host's memory while other roles have the device."""
        return sum(part.size for part in self.held if part.leaves)


@dataclass(frozen=True, kw_only=True)
class DeviceMemory:
    """The memory of devices that the same roles share."""

    roles: tuple[RoleMemory, ...]  # one entry for each actor
    devices: int
    in_turn: bool
    processes: int  # on each

    @property
    def peak(self) -> int:
        """Bytes. Peaks of processes without turns add up: a process keeps the memory that it once had."""
        contexts = (self.processes - 1) * _CONTEXT
        if self.in_turn:
            stays = sum(role.stays for role in self.roles)
            return contexts + stays + max(role.peak - role.stays for role in self.roles)
        if self.processes == 1:
            held = sum(part.size for role in self.roles for part in role.held)
            return held + max((part.size for role in self.roles for part in role.in_turn), default=0)
        return contexts + sum(role.peak for role in self.roles)


def room(gpu: Gpu) -> int:
    """The bytes of a GPU that a role can fill."""
    return int(gpu.memory * (1 - _RESERVED))


def devices_of(placement: PlacementSection, roles: tuple[RoleMemory, ...]) -> tuple[DeviceMemory, ...]:
    """The devices, those with the same roles together, the fullest first."""
    numbers = sorted({number for role in roles for number in role.seats})
    there = Counter(tuple(role for role in roles if number in role.seats) for number in numbers)
    kinds = [
        DeviceMemory(
            roles=together,
            devices=count,
            in_turn=placement.offload,
            processes=1 if placement.mode == "local" else len(together),
        )
        for together, count in there.items()
    ]
    return tuple(sorted(kinds, key=lambda kind: -kind.peak))
