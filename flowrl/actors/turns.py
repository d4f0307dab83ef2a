"""Roles that share devices and have them in turn, so that each has the memory that it needs."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from flowrl.actors.runtime import ActorGroup, Runtime
from flowrl.protocols import Movable


class Turns:
    """Has the frozen weights of one role at a time on the devices, those of the others in the host's memory.

    Of no roles it does nothing: all stay where they are.
    """

    def __init__(self, runtime: Runtime, groups: Iterable[ActorGroup] = ()) -> None:
        """Takes `groups` as they are after their making: all on the devices."""
        self._runtime = runtime
        self._there = list(dict.fromkeys(groups))
        self._away: list[ActorGroup] = []

    @property
    def taken(self) -> bool:
        """Whether there are turns at all."""
        return bool(self._there)

    def take(self, group: ActorGroup) -> None:
        """It is the turn of `group`: the others leave first, since there may be no room for both."""
        if not self.taken or self._there == [group]:
            return
        leaving = [other for other in self._there if other is not group]
        self._move(leaving, on_device=False)
        if group in self._away:
            self._move([group], on_device=True)
        self._away = [other for other in [*self._away, *leaving] if other is not group]
        self._there = [group]

    def _move(self, groups: Iterable[ActorGroup], *, on_device: bool) -> None:
        calls = [group.submit(index, Movable.move_frozen, on_device) for group in groups for index in range(group.size)]
        self._runtime.get(calls)


def move_frozen(module: torch.nn.Module, device: str) -> None:
    """Move what is not trained, parameters and buffers, and give back the memory of a GPU that it leaves."""
    for parameter in module.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(device)
    for buffer in module.buffers():
        buffer.data = buffer.data.to(device)
    if device == "cpu" and torch.cuda.is_available():
        torch.cuda.empty_cache()
