"""What is installed on a node, as a report that can be sent, and how reports of several nodes differ.

`python -m flowrl.doctor.versions PATH ...` prints the report of the machine that it is called on.
"""

from __future__ import annotations

import hashlib
import json
import platform
import socket
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import flowrl
from flowrl.doctor.nvidia import graphics

_PACKAGES = ("torch", "ray", "diffusers", "transformers", "peft", "accelerate", "deepspeed")
_CODE = ("flowrl", "rewards")
_NONE = "not installed"


@dataclass(frozen=True, kw_only=True)
class VersionReport:
    """One node.

    Example: ``VersionReport(host="n1", versions=(("Python", "3.11.7"), ("torch", "2.13.0")), gpus=("H100",))``
    """

    host: str
    versions: tuple[tuple[str, str], ...]  # name and version of all that must be equal
    gpus: tuple[str, ...] = ()
    driver: str = ""
    missing: tuple[str, ...] = ()  # of the paths that were asked for

    def to_json(self) -> str:
        """The report in one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> VersionReport:
        """The report of `to_json`; raises ValueError for anything else."""
        try:
            fields = json.loads(text)
            return cls(
                host=str(fields["host"]),
                versions=tuple((str(name), str(version)) for name, version in fields["versions"]),
                gpus=tuple(map(str, fields["gpus"])),
                driver=str(fields["driver"]),
                missing=tuple(map(str, fields["missing"])),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"no report of versions: {text[:80]!r}") from error


def version_report(paths: Sequence[str] = ()) -> VersionReport:
    """The report of this machine, with those of the paths that are not there."""
    found = graphics()
    return VersionReport(
        host=socket.gethostname(),
        versions=(
            ("Python", platform.python_version()),
            ("flowrl", f"{flowrl.__version__} ({code_digest()})"),
            *((name, _version(name)) for name in _PACKAGES),
        ),
        gpus=tuple(gpu.name for gpu in found.gpus),
        driver=found.driver,
        missing=tuple(path for path in paths if not Path(path).exists()),
    )


def code_digest() -> str:
    """A short digest of the project's own code, rewards included: two checkouts can have one version."""
    digest = hashlib.blake2b(digest_size=4)
    for package in _CODE:
        found = find_spec(package)  # imports nothing of it
        for folder in map(Path, found.submodule_search_locations or () if found is not None else ()):
            for file in sorted(folder.rglob("*.py")):
                name = f"{package}/{file.relative_to(folder).as_posix()}"
                digest.update(name.encode() + b"\0" + file.read_bytes())
    return f"code {digest.hexdigest()}"


def differences(reports: Sequence[VersionReport]) -> list[str]:
    """What is not equal on all nodes, a line each.

    Example: "torch is 2.13.0 on n1, n2 and 2.12.0 on n3"
    """
    names = list(dict.fromkeys(name for report in reports for name, _ in report.versions))
    found = []
    for name in names:
        hosts: dict[str, list[str]] = {}
        for report in reports:
            hosts.setdefault(dict(report.versions).get(name, _NONE), []).append(report.host)
        if len(hosts) > 1:
            found.append(
                f"{name} is "
                + " and ".join(f"{version} on {', '.join(dict.fromkeys(on))}" for version, on in hosts.items())
            )
    return found


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return _NONE


if __name__ == "__main__":
    sys.stdout.write(version_report(sys.argv[1:]).to_json() + "\n")
