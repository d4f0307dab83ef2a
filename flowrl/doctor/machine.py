"""A machine as the checks see it: a snapshot of values, so that any machine can be examined from any other."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Package:
    """A Python package that flowrl needs."""

    name: str
    wanted: str  # the range, such as ">=2.6"
    version: str  # empty: not installed


@dataclass(frozen=True, kw_only=True)
class TorchBuild:
    """What the installed torch says of itself."""

    version: str  # such as "2.13.0+cpu"
    cuda: str = ""  # of CUDA, such as "13.0"; empty: a build without it
    nccl: str = ""  # of NCCL; empty: a build without it
    capabilities: tuple[str, ...] = ()  # that it has code for, such as "sm_90" or "compute_120"
    usable_gpus: int = 0  # that it can compute on
    complaint: str = ""  # of the import or of CUDA


@dataclass(frozen=True, kw_only=True)
class GpuProcess:
    """A process of anyone's that holds memory of a GPU."""

    pid: int
    name: str
    memory: int  # bytes


@dataclass(frozen=True, kw_only=True)
class GpuState:
    """One GPU of the machine, whether torch can use it or not."""

    index: int
    name: str
    total: int  # bytes
    free: int  # bytes
    capability: tuple[int, int]  # (0, 0): not known
    processes: tuple[GpuProcess, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Graphics:
    """GPUs as the system and their driver tell of them."""

    on_bus: int = 0  # NVIDIA GPUs that are built in, driver or not
    driver: str = ""  # its version; empty: none answers
    complaint: str = ""  # of nvidia-smi, where it is there and fails
    gpus: tuple[GpuState, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Disk:
    """A folder that is written to, and the disk it is on."""

    use: str  # the key that sets the folder, such as "run.dir"; "cache" and "temporary" have none
    path: Path
    device: int  # the disk's number in the system, the same for all folders on it
    free: int  # bytes, for this user
    writable: bool


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Everything that checks ask of a machine.

    Example: ``collect(disks={"run.dir": Path("runs")})`` is this one.
    """

    host: str
    address: str  # that its own name stands for; empty: none
    python: str  # version
    python_wanted: str  # range
    executable: str  # of Python
    packages: tuple[Package, ...]
    torch: TorchBuild | None  # None: not installed
    graphics: Graphics
    visible: str | None = None  # CUDA_VISIBLE_DEVICES
    cpus: int  # that this process may use
    memory_total: int  # bytes, of the machine or of the container's limit
    memory_free: int  # bytes that are available
    shm_total: int | None  # bytes of /dev/shm; None: there is none
    shm_free: int = 0
    open_files: int  # the most that a process may have, its hard limit
    in_container: bool = False
    disks: tuple[Disk, ...] = field(default=())

    @property
    def visible_gpus(self) -> tuple[GpuState, ...]:
        """The GPUs that CUDA_VISIBLE_DEVICES leaves, where it names them by number; else all."""
        chosen = [word.strip() for word in (self.visible or "").split(",")]
        if not all(word.isdigit() for word in chosen):
            return self.graphics.gpus
        return tuple(gpu for gpu in self.graphics.gpus if str(gpu.index) in chosen)
