"""Actors as processes on Ray, in groups that may share devices: the only module that knows Ray."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
from collections.abc import Callable, Sequence
from typing import Any

from flowrl.actors import socket_folder
from flowrl.actors.runtime import ActorError, ActorGroup, Ref
from flowrl.base.errors import UserError
from flowrl.memory import process_bytes

_OBJECT_STORE_BYTES = 512 * 2**20
_SOME_CPU = 0.001
_ANSWER_S = 10.0  # how long to wait for whoever listens at an address


class _Host:
    """The Ray actor: an empty process that is told its place in a gang, and then builds its role."""

    def address(self) -> tuple[str, int]:
        """An address of this node at which a process group can meet."""
        import ray

        node = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((node, 0))
            return node, int(probe.getsockname()[1])

    def build(self, make: Callable[[], Any], environment: dict[str, str], folder: str) -> None:
        """Make the role, in the driver's folder, from which relative paths count.

        The environment is set first because libraries read it when they are imported. Raises ActorError when this node
        has no such folder.
        """
        if not os.path.isdir(folder):
            raise ActorError(f"{socket.gethostname()} has no folder {folder}; every node needs the same checkout there")
        os.chdir(folder)
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

    def __init__(self, *, address: str, threads: int, on_gpus: bool, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._on_gpus = on_gpus
        self._shares: list[int] = []  # how many actors use each reserved device
        self._reserved: Any = None
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
            _join(address, threads)
            return
        self._folder = socket_folder.make()
        try:
            ray.init(
                address="local",
                num_cpus=len(os.sched_getaffinity(0)),  # of a job those that it was given
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                # Of a run on GPUs the trajectories are larger by orders: there Ray takes its share of the memory.
                object_store_memory=None if on_gpus else _OBJECT_STORE_BYTES,
                _temp_dir=self._folder,
            )
        except BaseException:
            self.close()
            raise

    def reserve(self, shares: Sequence[int]) -> None:
        """Set devices aside: GPUs on as few nodes as there can be, or places on the CPUs of all nodes in turn.

        Raises ActorError when the cluster has too few GPUs, or others hold them longer than the timeout.
        """
        import ray

        there = ray.cluster_resources().get("GPU", 0)
        if self._on_gpus and len(shares) > there:
            raise ActorError(f"placement: the actors need {len(shares)} GPUs, but Ray has {there:g}")
        # Hardly any CPU is reserved: an idle role would keep others from starting on a small machine.
        bundle = {"GPU": 1.0} if self._on_gpus else {"CPU": _SOME_CPU}
        self._reserved = ray.util.placement_group([bundle] * len(shares), "PACK" if self._on_gpus else "SPREAD")
        self._shares = list(shares)
        if not self._reserved.wait(self._timeout_s):
            raise ActorError(
                f"placement: {len(shares)} devices were not free within placement.timeout_s = {self._timeout_s:g} s; "
                "wait until other runs of this cluster end, or use fewer"
            )

    def start(
        self, name: str, make: Callable[[], Any], *, size: int, gang: bool, devices: Sequence[int] = ()
    ) -> ActorGroup:
        """Start the processes and have each build the role; groups started one after another come up together."""
        import ray

        host = ray.remote(_Host)
        seats: list[int | None] = [*devices] or [None] * size
        group = RayActors(name, [self._seat(host, seat).remote() for seat in seats])
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
        self._built += [h.build.remote(make, e, os.getcwd()) for h, e in zip(group.hosts, environments, strict=True)]
        return group

    def _seat(self, host: Any, device: int | None) -> Any:
        """The actor class at a reserved device, or anywhere. No CPU is set aside for it, and nothing restarts it."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        if device is None:
            return host.options(num_cpus=0, num_gpus=0, max_restarts=0)
        return host.options(
            num_cpus=0,
            max_restarts=0,
            num_gpus=1 / self._shares[device] if self._on_gpus else 0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(self._reserved, device),
        )

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
            raise self._late() from None
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
            raise self._late()
        ref: Ref = ready[0]
        return ref

    def _late(self) -> ActorError:
        return ActorError(
            f"an actor did not answer within placement.timeout_s = {self._timeout_s:g} s; it may hang, or the machine "
            "may be too slow for this configuration: raise placement.timeout_s"
        )

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
            if self._reserved is not None:
                ray.util.remove_placement_group(self._reserved)
                self._reserved = None
        ray.shutdown()  # also when starting it was cut short
        self._groups = []
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def _join(address: str, threads: int) -> None:
    """Connect to the Ray cluster at HOST:PORT; raises UserError when nobody answers, or this process has no access."""
    import ray

    host, _, port = address.rpartition(":")
    try:  # Ray would go on trying for two minutes
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
    except (OSError, ValueError) as error:
        raise UserError(
            f"placement.ray_address: nobody answers at {address} ({error}); give HOST:PORT of the head of a Ray "
            "cluster that is up and can be reached from here"
        ) from None
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level="ERROR",
            # Its nodes were started by others, and have nothing of this process's environment.
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(threads)}},
        )
    except (ray.exceptions.RayError, ConnectionError) as error:
        said = str(error).partition(". ")[0]
        raise UserError(
            f"placement.ray_address: Ray at {address} did not let this process in ({said}): it wants the token of the "
            "cluster; export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH, the file with the token"
        ) from error


def ask_each_node(call: Callable[[], Any], *, address: str, timeout_s: float) -> list[tuple[str, Any]]:
    """What `call` returns on every live node of the Ray cluster at `address`, each after the node's address.

    In place of what it raised on a node stands an ActorError, and a TimeoutError where nothing came within `timeout_s`,
    for which all nodes are waited for together. Raises UserError when the cluster cannot be joined.
    """
    runtime = RayRuntime(address=address, threads=1, on_gpus=False, timeout_s=timeout_s)
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def answer_there() -> Any:
        return call()

    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        there = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
        refs = [ray.remote(answer_there).options(num_cpus=0, scheduling_strategy=one).remote() for one in there]
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=timeout_s)
        answers: list[tuple[str, Any]] = []
        for node, ref in zip(nodes, refs, strict=True):
            try:
                answer = ray.get(ref) if ref in ready else TimeoutError(f"no answer in {timeout_s:.0f} s")
            except ray.exceptions.RayError as error:
                answer = ActorError(str(error))
            answers.append((node["NodeManagerAddress"], answer))
        return answers
    finally:
        runtime.close()
