"""A runtime that finishes calls in an order of the test's choosing: what Ray may do, made reproducible."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from flowrl.actors.runtime import ActorGroup, Ref


class Later:
    """A call that was made and has not finished; it does when somebody needs its value."""

    def __init__(self, role: Any, method: str, args: tuple[Any, ...]) -> None:
        self._call: Callable[[], Any] | None = lambda: getattr(role, method)(*map(value_of, args))
        self._value: Any = None

    def value(self) -> Any:
        if self._call is not None:
            self._value = self._call()
            self._call = None
        return self._value


def value_of(argument: Any) -> Any:
    return argument.value() if isinstance(argument, Later) else argument


class ScrambledActors:
    """Several instances of a role; `log` tells which of them was asked for what, in order."""

    def __init__(self, name: str, roles: list[Any]) -> None:
        self.name = name
        self.size = len(roles)
        self.roles = roles
        self.log: list[tuple[int, str, tuple[Any, ...]]] = []

    def submit(self, index: int, method: Callable[..., Any], *args: Any) -> Ref:
        self.log.append((index, method.__name__, args))
        return Later(self.roles[index], method.__name__, args)


class ScrambledRuntime:
    """Real roles; only the order in which they finish is made up. `order` picks the next of n pending calls."""

    def __init__(self, order: Callable[[int], int]) -> None:
        self._order = order
        self.most_waiting = 0

    def reserve(self, shares: Sequence[int]) -> None:
        pass

    def start(
        self, name: str, make: Callable[[], Any], *, size: int, gang: bool, devices: Sequence[int] = ()
    ) -> ActorGroup:
        return ScrambledActors(name, [make() for _ in range(size)])

    def ready(self) -> None:
        pass

    def get(self, refs: Sequence[Ref]) -> list[Any]:
        return [value_of(ref) for ref in refs]

    def wait(self, refs: Sequence[Ref]) -> Ref:
        self.most_waiting = max(self.most_waiting, len(refs))
        chosen = refs[self._order(len(refs))]
        value_of(chosen)
        return chosen

    def put(self, value: Any) -> Ref:
        later = Later(None, "", ())
        later._call, later._value = None, value
        return later

    def memory_bytes(self) -> int:
        return 0

    def close(self) -> None:
        pass


ORDERS: dict[str, Callable[[], Callable[[int], int]]] = {
    "first": lambda: lambda count: 0,
    "last": lambda: lambda count: count - 1,
    "random": lambda: random.Random(3).randrange,
}
