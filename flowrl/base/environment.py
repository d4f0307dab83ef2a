"""Where and how a run was started: machine, versions, code and command."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from flowrl.base.atomic_file import write_atomically

_PACKAGES = (
    *("flowrl", "torch", "diffusers", "transformers", "peft", "accelerate", "deepspeed", "ray"),
    *("omegaconf", "numpy", "tensorboard", "pillow"),
)


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Where and how a run was started."""

    started: str  # UTC, ISO 8601
    command: str
    pid: int
    python: str
    platform: str
    cpus: int  # that this process may use
    memory_gib: float
    gpus: list[str]
    packages: dict[str, str]
    git_commit: str | None  # of the working tree that the code was imported from
    git_dirty: bool | None  # whether tracked files differed from that commit


def environment() -> Environment:
    """The environment of this process."""
    commit, dirty = _git()
    return Environment(
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        command=_command(),
        pid=os.getpid(),
        python=platform.python_version(),
        platform=platform.platform(),
        cpus=len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1,
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        gpus=(_output(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]) or "").splitlines(),
        packages=_versions(),
        git_commit=commit,
        git_dirty=dirty,
    )


def read_environments(path: Path) -> list[Environment]:
    """Every start of a run, the first one first; none where the file is missing or damaged."""
    try:
        first = json.loads(path.read_text(encoding="utf-8"))
        resumes = first.pop("resumes", [])
        return [Environment(**start) for start in [first, *resumes]]
    except (OSError, ValueError, TypeError, AttributeError):
        return []


def _command() -> str:
    program = Path(sys.argv[0])
    words = ["python", "-m", program.parent.name] if program.name == "__main__.py" else [program.name]
    return shlex.join([*words, *sys.argv[1:]])


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _git() -> tuple[str | None, bool | None]:
    folder = str(Path(__file__).parent)
    # An installed package can lie inside some other repository; only one that tracks this code counts.
    if _output(["git", "-C", folder, "ls-files", "--error-unmatch", Path(__file__).name]) is None:
        return None, None
    commit = _output(["git", "-C", folder, "rev-parse", "HEAD"])
    status = _output(["git", "-C", folder, "status", "--porcelain", "--untracked-files=no"])
    return commit, None if status is None else bool(status)


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def write_environments(path: Path, starts: list[Environment]) -> None:
    """Write the first start of a run, with the later ones under `resumes`."""
    first, *rest = [asdict(start) for start in starts]
    write_atomically(path, (json.dumps(first | {"resumes": rest}, indent=2) + "\n").encode())
