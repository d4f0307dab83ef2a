"""Roles that share devices and have them in turn, so that each has the memory that it needs."""

from __future__ import annotations

import gc

import torch

from flowrl.actors.runtime import ActorGroup, Runtime
from flowrl.protocols import Movable


class Turns:
    """Has the frozen weights of one role at a time on the devices, those of the others in the host's memory.

    Where no role has joined it does nothing: all stay where they are.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._roles: list[ActorGroup] = []
        self._there: ActorGroup | None = None

    @property
    def taken(self) -> bool:
        """Whether there are turns at all."""
        return bool(self._roles)

    def join(self, group: ActorGroup) -> None:
        """Have a role that was just made leave until it is its turn, so that there is room to make the next."""
        self._move(group, on_device=False)
        self._roles.append(group)

    def take(self, group: ActorGroup) -> None:
        """It is the turn of `group`: the one before leaves first, since there may be no room for both."""
        if not self.taken or group is self._there:
            return
        self.clear()
        self._move(group, on_device=True)
        self._there = group

    def clear(self) -> None:
        """Nobody's turn: whoever is there leaves, so that something else has room for a while."""
        if self._there is not None:
            self._move(self._there, on_device=False)
            self._there = None

    def _move(self, group: ActorGroup, *, on_device: bool) -> None:
        self._runtime.get([group.submit(index, Movable.move_frozen, on_device) for index in range(group.size)])


def move_frozen(module: torch.nn.Module, device: str) -> None:
    """Move what is not trained, parameters and buffers, and give back the memory of a GPU that it leaves."""
    for parameter in module.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(device)
    for buffer in module.buffers():
        buffer.data = buffer.data.to(device)
    if device == "cpu":
        give_back()


def give_back() -> None:
    """Give the memory of a GPU that nothing is in any more back to the other processes there."""
    if torch.cuda.is_available():
        gc.collect()  # what is in a cycle still has its memory
        torch.cuda.empty_cache()
