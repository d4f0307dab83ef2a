"""Checks of Python and of the packages."""

from __future__ import annotations

import importlib
import logging
from functools import partial

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from flowrl.doctor.finding import Check, Finding, fine, problem
from flowrl.doctor.machine import Machine

_logger = logging.getLogger(__name__)
SUBJECT = "Python and packages"
_NAMED = ("torch", "diffusers", "transformers", "peft", "accelerate", "deepspeed", "ray")


def software_checks(machine: Machine) -> list[Check]:
    """All of them; the last one imports."""
    return [
        Check(subject=SUBJECT, name="Python", look=partial(python_version, machine)),
        Check(subject=SUBJECT, name="packages", look=partial(package_versions, machine)),
        Check(subject=SUBJECT, name="imports", look=partial(imports, machine)),
    ]


def python_version(machine: Machine) -> Finding:
    """Python is new enough."""
    if machine.python in SpecifierSet(machine.python_wanted, prereleases=True):
        return fine(f"{machine.python} ({machine.executable})")
    return problem(
        f"{machine.python}, where flowrl needs {machine.python_wanted}",
        "install a newer Python and make a new environment with it: make VENV=.venv-new PYTHON=python3.12 setup",
    )


def package_versions(machine: Machine) -> Finding:
    """Every package is there, in a version of pyproject.toml's range."""
    faults, wanted = [], []
    for package in machine.packages:
        if not package.version:
            faults.append(f"{package.name} is not installed")
        # A local version such as 2.13.0+cpu counts as 2.13.0.
        elif Version(package.version).public not in SpecifierSet(package.wanted, prereleases=True):
            faults.append(f"{package.name} is {package.version}, needed is {package.wanted}")
        else:
            continue
        wanted.append(f'"{package.name}{package.wanted}"')
    if faults:
        return problem("; ".join(faults), f"{pip(machine)} install {' '.join(wanted)}")
    versions = {package.name: package.version for package in machine.packages}
    named = ", ".join(f"{name} {versions[name]}" for name in _NAMED if name in versions)
    return fine(f"all {len(versions)} in range: {named}")


def imports(machine: Machine) -> Finding:
    """The code of a run can be imported: packages can be in range and not fit each other."""
    try:
        for module in ("flowrl.run", "flowrl.models.sd3"):
            importlib.import_module(module)
    except Exception as error:  # whatever a library raises is what to show
        _logger.debug("import", exc_info=True)
        said = " ".join(f"{error} {error.__cause__ or ''} {error.__context__ or ''}".split())
        if "torchvision" in said:
            return problem(
                f"diffusers or transformers cannot be imported: the torchvision that is installed does not fit this "
                f"torch ({said[:200]})",
                f"{pip(machine)} uninstall -y torchvision timm    # flowrl needs neither",
            )
        return problem(
            f"the libraries cannot be imported: {type(error).__name__}: {said[:300]}",
            f"{pip(machine)} install --force-reinstall --constraint constraints.txt --editable .    # in the folder of "
            "flowrl",
        )
    return fine("flowrl, torch, diffusers, transformers and peft load together")


def pip(machine: Machine) -> str:
    """How to call pip for the Python that flowrl runs on."""
    return f"{machine.executable} -m pip"
