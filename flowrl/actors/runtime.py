"""Where actors live and how they are called, whatever is below; and the runtime that has them all in this process.

`Runtime.start(...)` makes the actors of one role. `ActorGroup.submit` calls a method of one of them and returns a
reference at once; a reference passed as an argument reaches the method as its value, without passing through the
driver. The in-process runtime does everything at the call, which is the debug mode and the fastest test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from flowrl.base.errors import UserError


class ActorError(UserError, RuntimeError):
    """An actor that died or did not answer; errors of the called method come through as they are."""


class Ref(Protocol):
    """A value that exists, or will, in some actor or in the object store."""


@dataclass(frozen=True, eq=False)  # a reference is itself, whatever it holds
class _Value:
    """A reference of the in-process runtime: the value itself."""

    value: Any


class ActorGroup(Protocol):
    """The actors of one role."""

    name: str
    size: int

    def submit(self, index: int, method: Callable[..., Any], *args: Any) -> Ref:
        """Call a method, given as that of any class which has it, of actor `index`; returns at once."""
        ...


class Runtime(Protocol):
    """Where actors live."""

    def reserve(self, shares: Sequence[int]) -> None:
        """Set devices aside for this run, given how many actors will share each; raises when there are too few."""
        ...

    def start(
        self, name: str, make: Callable[[], Any], *, size: int, gang: bool, devices: Sequence[int] = ()
    ) -> ActorGroup:
        """Begin to make `size` actors, each by calling `make` where it lives; a gang shares one process group.

        `devices` tells which of the reserved ones each actor uses; without it actors live anywhere and use none.
        """
        ...

    def ready(self) -> None:
        """Wait until every actor is made; raises the error of the first that could not be."""
        ...

    def get(self, refs: Sequence[Ref]) -> list[Any]:
        """The values, once they exist; raises ActorError."""
        ...

    def wait(self, refs: Sequence[Ref]) -> Ref:
        """The first of the references whose value exists."""
        ...

    def put(self, value: Any) -> Ref:
        """Make a value that many calls take into one object."""
        ...

    def memory_bytes(self) -> int:
        """The resident memory of all actors together."""
        ...

    def close(self) -> None:
        """End every actor; safe to call twice."""
        ...


class LocalActors:
    """One instance of a role in this process."""

    def __init__(self, name: str, instance: Any) -> None:
        self.name = name
        self.size = 1
        self._instance = instance

    def submit(self, index: int, method: Callable[..., Any], *args: Any) -> Ref:
        """Run the method now."""
        values = [arg.value if isinstance(arg, _Value) else arg for arg in args]
        return _Value(getattr(self._instance, method.__name__)(*values))


class LocalRuntime:
    """Every role once, in this process, one call after the other."""

    def reserve(self, shares: Sequence[int]) -> None:
        """Nothing to set aside."""

    def start(
        self, name: str, make: Callable[[], Any], *, size: int, gang: bool, devices: Sequence[int] = ()
    ) -> ActorGroup:
        """Make the one instance; `size` does not matter to results."""
        return LocalActors(name, make())

    def ready(self) -> None:
        """Nothing to wait for."""

    def get(self, refs: Sequence[Ref]) -> list[Any]:
        """The values."""
        values = []
        for ref in refs:
            assert isinstance(ref, _Value), ref
            values.append(ref.value)
        return values

    def wait(self, refs: Sequence[Ref]) -> Ref:
        """The first reference: all values exist."""
        return refs[0]

    def put(self, value: Any) -> Ref:
        """The value as a reference."""
        return _Value(value)

    def memory_bytes(self) -> int:
        """Nothing beside the driver's own memory."""
        return 0

    def close(self) -> None:
        """Nothing to end."""
