"""The actors of a role, on Ray or in this process, behind one API: the only module that knows Ray.

`Runtime.start(...)` makes the actors of one role. `ActorGroup.submit` calls a method of one of them and returns a
reference at once; a reference passed as an argument reaches the method as its value, without passing through the
driver. The in-process runtime does everything at the call, which is the debug mode and the fastest test.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from flowrl.actors import socket_folder
from flowrl.base.errors import UserError
from flowrl.memory import process_bytes

_OBJECT_STORE_BYTES = 512 * 2**20


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

    def start(self, name: str, make: Callable[[], Any], *, size: int, gang: bool) -> ActorGroup:
        """Begin to make `size` actors, each by calling `make` where it lives; a gang shares one process group."""
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

    def start(self, name: str, make: Callable[[], Any], *, size: int, gang: bool) -> ActorGroup:
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


class _Host:
    """The Ray actor: an empty process that is told its place in a gang, and then builds its role."""

    def address(self) -> tuple[str, int]:
        """An address of this node at which a process group can meet."""
        import ray

        node = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((node, 0))
            return node, int(probe.getsockname()[1])

    def build(self, make: Callable[[], Any], environment: dict[str, str]) -> None:
        """Make the role; the environment is set first because libraries read it when they are imported."""
        os.environ.update(environment)
        self._role = make()

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the role."""
        return getattr(self._role, method)(*args)

    def memory_bytes(self) -> int:
        """The resident memory of this process."""
        return process_bytes()


class RayActors:
    """The actors of one role on Ray."""

    def __init__(self, name: str, hosts: list[Any]) -> None:
        self.name = name
        self.size = len(hosts)
        self.hosts = hosts

    def submit(self, index: int, method: Callable[..., Any], *args: Any) -> Ref:
        """Call a method of actor `index`; the result stays in the object store."""
        ref: Ref = self.hosts[index].call.remote(method.__name__, *args)
        return ref


class RayRuntime:
    """Actors as processes on Ray, started for this run or joined at an address."""

    def __init__(self, *, address: str, threads: int, gpus_per_actor: float, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._gpus, self._asked = gpus_per_actor, 0.0  # asked for by the groups that were started
        self._groups: list[RayActors] = []
        self._built: list[Ref] = []
        self._folder: str | None = None
        # Read by the libraries of the actors when they are imported, before any code of ours runs there.
        os.environ["OMP_NUM_THREADS"] = str(threads)
        os.environ.setdefault("RAY_worker_niceness", "0")
        os.environ.setdefault("RAY_worker_register_timeout_seconds", "180")
        os.environ.setdefault("RAY_enable_metrics_collection", "0")
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        if address == "local" and "RAY_AUTH_MODE" not in os.environ:
            # A token of this run alone: without one, whoever reaches the port can run code as this user.
            os.environ["RAY_AUTH_MODE"] = "token"
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        import ray  # reads the environment

        if address != "local":
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
            return
        self._folder = socket_folder.make()
        try:
            ray.init(
                address="local",
                num_cpus=os.cpu_count(),
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                object_store_memory=_OBJECT_STORE_BYTES,
                _temp_dir=self._folder,
            )
        except BaseException:
            self.close()
            raise

    def start(self, name: str, make: Callable[[], Any], *, size: int, gang: bool) -> ActorGroup:
        """Start the processes and have each build the role; groups started one after another come up together."""
        import ray

        self._asked += size * self._gpus
        if self._asked > (there := ray.cluster_resources().get("GPU", 0)):
            raise ActorError(f"placement: each actor takes a GPU, {self._asked:g} with {name}, but Ray has {there:g}")
        # No CPU is reserved: an idle role would keep others from starting on a small machine.
        host = ray.remote(_Host).options(num_cpus=0, num_gpus=self._gpus, max_restarts=0)
        group = RayActors(name, [host.remote() for _ in range(size)])
        self._groups.append(group)
        environments: list[dict[str, str]] = [{} for _ in range(size)]
        if gang:
            [(node, port)] = self.get([group.hosts[0].address.remote()])
            environments = [
                {
                    "RANK": str(rank),
                    "WORLD_SIZE": str(size),
                    "LOCAL_RANK": "0",  # each actor sees one device, if any
                    "MASTER_ADDR": node,
                    "MASTER_PORT": str(port),
                }
                for rank in range(size)
            ]
        self._built += [h.build.remote(make, e) for h, e in zip(group.hosts, environments, strict=True)]
        return group

    def ready(self) -> None:
        """Wait until every role is built; raises the error of the first that could not be, or ActorError."""
        while self._built:
            built = self.wait(self._built)
            self._built.remove(built)
            self.get([built])

    def get(self, refs: Sequence[Ref]) -> list[Any]:
        """The values, once they exist; raises ActorError when a call failed or took longer than the timeout."""
        import ray

        try:
            values: list[Any] = ray.get(list(refs), timeout=self._timeout_s)
            return values
        except ray.exceptions.GetTimeoutError:
            raise ActorError(
                f"an actor did not answer within placement.timeout_s = {self._timeout_s:g} s; it may hang, or the "
                "machine may be too slow for this configuration"
            ) from None
        except ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            raise cause from error
        except ray.exceptions.RayActorError as error:
            raise ActorError(f"an actor died: {error}") from error

    def wait(self, refs: Sequence[Ref]) -> Ref:
        """The first of the references whose value exists; raises ActorError after the timeout."""
        import ray

        ready, _ = ray.wait(list(refs), num_returns=1, timeout=self._timeout_s, fetch_local=False)
        if not ready:
            raise ActorError(
                f"no actor answered within placement.timeout_s = {self._timeout_s:g} s; "
                f"available resources: {ray.available_resources()}"
            )
        ref: Ref = ready[0]
        return ref

    def put(self, value: Any) -> Ref:
        """The value as one object in the store."""
        import ray

        ref: Ref = ray.put(value)
        return ref

    def memory_bytes(self) -> int:
        """The resident memory of all actors; pages they share are counted for each."""
        return sum(self.get([host.memory_bytes.remote() for group in self._groups for host in group.hosts]))

    def close(self) -> None:
        """Kill the actors, end Ray if it was started here, and remove its folder."""
        import ray

        if ray.is_initialized():
            for group in self._groups:
                for host in group.hosts:
                    ray.kill(host)
        ray.shutdown()  # also when starting it was cut short
        self._groups = []
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
