"""Checks of the machine beside its GPUs: memory, cores, /dev/shm, open files, disks."""

from __future__ import annotations

from functools import partial

from flowrl.base.amounts import GB, size
from flowrl.doctor.finding import Check, Finding, fine, note, problem
from flowrl.doctor.machine import Disk, Machine
from flowrl.doctor.purpose import Purpose

SUBJECT = "Machine"
# Ray keeps its objects there, 512 MiB of them in a run on the CPU, a share of the memory on GPUs; NCCL takes some MB
# for each pair of GPUs.
_LEAST_SHM, _GOOD_SHM = 700 * 2**20, 8 * 2**30
_LEAST_MEMORY, _LEAST_CORES = 5 * GB, 2  # of the pocket run
_LEAST_FILES, _GOOD_FILES = 1024, 8192  # Ray asks for the second
_LEAST_DISK = GB


def host_checks(machine: Machine, purpose: Purpose) -> list[Check]:
    """All of them, one for each disk."""
    checks = {
        "memory": partial(memory, machine),
        "cores": partial(cores, machine),
        "/dev/shm": partial(shared_memory, machine, purpose),
        "open files": partial(open_files, machine, purpose),
    }
    return [
        *(Check(subject=SUBJECT, name=name, look=look) for name, look in checks.items()),
        *(Check(subject=SUBJECT, name=f"disk: {one.use}", look=partial(disk_state, one)) for one in machine.disks),
    ]


def memory(machine: Machine) -> Finding:
    """There is enough for the pocket run at least."""
    found = f"{size(machine.memory_free)} of {size(machine.memory_total)} free"
    if machine.memory_free >= _LEAST_MEMORY:
        return fine(found)
    return note(
        f"{found}; even the pocket run takes {size(_LEAST_MEMORY)} on Ray",
        "end other programs, give the container more (docker run --memory), or add placement.mode=local to the run: "
        "then it is one process",
    )


def cores(machine: Machine) -> Finding:
    """Actors on the CPU share them."""
    if machine.cpus >= _LEAST_CORES:
        return fine(f"{machine.cpus}")
    return note(f"{machine.cpus}: a run on the CPU will be slow", "ask for more, as with docker run --cpus or srun -c")


def shared_memory(machine: Machine, purpose: Purpose) -> Finding:
    """Ray and NCCL pass data between processes through /dev/shm; Docker gives 64 MB unless told otherwise."""
    total = machine.shm_total
    if total is None:
        return problem("there is no /dev/shm, through which processes pass data", _larger_shm(machine))
    found = f"{size(machine.shm_free)} of {size(total)} free"
    if machine.shm_free >= _GOOD_SHM:
        return fine(found)
    if machine.shm_free >= _LEAST_SHM:
        return fine(found) if not purpose.gpus else note(f"{found}: little for several GPUs", _larger_shm(machine))
    why = f"{found}; Ray and NCCL pass data between processes there and need {size(_LEAST_SHM)} at the least"
    if purpose.ray:
        return problem(why, _larger_shm(machine))
    return note(f"{why}; this run has one process and needs none", _larger_shm(machine))


def open_files(machine: Machine, purpose: Purpose) -> Finding:
    """Ray opens many sockets and files, and raises its own limit up to the hard one."""
    limit = machine.open_files
    if limit >= _GOOD_FILES:
        return fine(f"a process may have {limit:,}")
    advice = (
        "docker run --ulimit nofile=65536:65536 ..."
        if machine.in_container
        else "as root: echo '* hard nofile 65536' >> /etc/security/limits.conf, then log in again"
    )
    found = f"a process may have {limit:,} open; Ray asks for {_GOOD_FILES:,}"
    return problem(found, advice) if limit < _LEAST_FILES and purpose.ray else note(found, advice)


def disk_state(disk: Disk) -> Finding:
    """A folder can be written to, and its disk is not full."""
    found = f"{size(disk.free)} free for {disk.path}"
    if not disk.writable:
        return problem(f"{disk.path} cannot be written to by this user", _elsewhere(disk))
    if disk.free < _LEAST_DISK:
        return problem(found, f"df -h {disk.path.absolute().parent}    # make room there, or {_elsewhere(disk)}")
    return fine(found)


def _elsewhere(disk: Disk) -> str:
    """How to use another folder."""
    fixed = {
        "cache": "keep it elsewhere: export XDG_CACHE_HOME=/a/disk/with/room HF_HOME=/a/disk/with/room/huggingface",
        "temporary": "let temporary files lie elsewhere: export TMPDIR=/a/disk/with/room",
    }
    return fixed.get(disk.use) or f"use another folder: add {disk.use}=/a/disk/with/room/{disk.path.name} to the run"


def _larger_shm(machine: Machine) -> str:
    if machine.in_container:
        return (
            "start the container with more: docker run --shm-size=16g ...\n"
            "(in Kubernetes: mount an emptyDir with medium: Memory at /dev/shm)"
        )
    return "as root: mount -o remount,size=16G /dev/shm    # in a container: docker run --shm-size=16g ..."
