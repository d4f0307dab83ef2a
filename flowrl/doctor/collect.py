"""Takes the snapshot of this machine."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import socket
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from flowrl.base.existing_folder import existing_folder
from flowrl.doctor.machine import Disk, Machine, Package
from flowrl.doctor.nvidia import graphics
from flowrl.doctor.torch_build import torch_build

SHM = Path("/dev/shm")
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_CGROUP_USES = (Path("/sys/fs/cgroup/memory.current"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"))


def collect(disks: Mapping[str, Path], shm: Path = SHM) -> Machine:
    """This machine, and the disks under some folders by what these are for; takes a second or two."""
    total, free = _memory()
    shared = shutil.disk_usage(shm) if shm.is_dir() else None
    host = socket.gethostname()
    return Machine(
        host=host,
        address=_address(host),
        python=platform.python_version(),
        python_wanted=metadata.metadata("flowrl")["Requires-Python"] or "",
        executable=sys.executable,
        packages=packages(),
        torch=torch_build(),
        graphics=graphics(),
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
        cpus=len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1,
        memory_total=total,
        memory_free=free,
        shm_total=None if shared is None else shared.total,
        shm_free=0 if shared is None else shared.free,
        open_files=_open_files(),
        in_container=any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv"))
        or "KUBERNETES_SERVICE_HOST" in os.environ,
        disks=tuple(disk(use, path) for use, path in disks.items()),
    )


def packages() -> tuple[Package, ...]:
    """What flowrl needs, by its own metadata, and what is installed of it; extras are left out."""
    found = []
    for text in metadata.requires("flowrl") or ():
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            version = ""
        found.append(Package(name=wanted.name, wanted=str(wanted.specifier), version=version))
    return tuple(found)


def disk(use: str, path: Path) -> Disk:
    """The disk on which `path` is, or would be made; nothing is made."""
    folder = existing_folder(path)
    return Disk(
        use=use,
        path=path,
        device=folder.stat().st_dev,
        free=shutil.disk_usage(folder).free,
        writable=os.access(folder, os.W_OK | os.X_OK),
    )


def _memory() -> tuple[int, int]:
    """Total and available bytes of this machine, or of the container's limit where that is lower."""
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():  # caches that would make room count as free
        lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines() if ":" in line)
        free = int(lines.get("MemAvailable", f"{free // 1024} kB").split()[0]) * 1024
    limit = _first_number(_CGROUP_LIMITS)
    if limit is not None and limit < total:
        total, free = limit, min(free, max(limit - (_first_number(_CGROUP_USES) or 0), 0))
    return total, free


def _first_number(files: tuple[Path, ...]) -> int | None:
    """The number in the first of the files that there is; None for "max" and where there is none."""
    for file in files:
        if file.is_file():
            text = file.read_text(encoding="ascii").strip()
            return int(text) if text.isdigit() else None
    return None


def _open_files() -> int:
    """The hard limit: Ray raises its own up to that."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard


def _address(host: str) -> str:
    try:
        return socket.gethostbyname(host)
    except OSError:
        return ""
