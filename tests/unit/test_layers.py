"""Imports run one way, and what must be light is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "ray", "deepspeed", "diffusers", "transformers", "peft", "accelerate", "numpy", "tensorboard"}


def imported_by(code: str) -> set[str]:
    """The top-level modules that are loaded after running `code` in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*{{name.split('.')[0] for name in sys.modules}})"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return set(done.stdout.splitlines()[-1].split())


def test_import_contracts_hold() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command; lint_imports_command()",
            "--no-cache",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize("module", ["flowrl", "flowrl.cli", "flowrl.registry", "flowrl.config", "flowrl.find_runs"])
def test_light_modules_load_nothing_heavy(module: str) -> None:
    assert not imported_by(f"import {module}") & HEAVY


def test_the_command_line_loads_nothing_but_the_standard_library() -> None:
    assert not imported_by("import flowrl.cli") & (HEAVY | {"omegaconf", "yaml"})


def test_reading_a_config_loads_nothing_heavy() -> None:
    assert not imported_by("import flowrl.config as c; c.load('configs/pocket/ditreward.yaml')") & HEAVY
