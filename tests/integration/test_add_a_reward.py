"""The guide to adding a reward, followed to the letter: its files are written and its commands are run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

GUIDE = (Path(__file__).parents[2] / "rewards" / "README.md").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent
# `pip install .` as the guide says it, but from what is here and into a folder of the test.
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def section(title: str) -> list[tuple[str, str]]:
    """The code blocks of a section of the guide: the language and the text of each."""
    [text] = re.findall(rf"^## {title}\n(.*?)^## ", GUIDE, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"^```(\w+)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def follow(title: str, folder: Path, environment: dict[str, str]) -> str:
    """Write the files and run the commands of a section in `folder`; what the commands printed."""
    commands = []
    for language, text in section(title):
        if language == "sh":
            commands.append(text)
            continue
        file = folder / text.splitlines()[0].removeprefix("# ")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    done = subprocess.run(
        ["bash", "-e", "-c", "".join(commands)],
        cwd=folder,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder."""
    return tmp_path_factory.mktemp("newcomer")


@pytest.fixture(scope="module")
def by_path(newcomer: Path) -> str:
    """What the commands of the first section print."""
    return follow("A reward in ten minutes", newcomer, {"PATH": f"{BIN}:{os.environ['PATH']}"})


@pytest.fixture(scope="module")
def by_name(newcomer: Path, by_path: str) -> str:
    """What the commands of the second section print, the package installed in a folder of its own."""
    site = str(newcomer / "site")
    environment = {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": site, "PIP_TARGET": site, **OFFLINE}
    return follow("As a package", newcomer, environment)


def runs(folder: Path) -> list[Path]:
    return sorted((folder / "runs").glob("colourful-*"))


def assert_it_trained(run: Path, label: str) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2]
    for row in rows[1:]:
        assert 0 < row[f"reward/{label}/mean"] < 2
        assert row[f"reward/{label}/std"] > 0
        assert row[f"reward/{label}/invalid"] == 0
    assert {f"eval/{label}/mean", "eval/dit_reward/mean"} <= rows[0].keys()


def test_a_class_is_used_by_its_path(newcomer: Path, by_path: str) -> None:
    assert re.search(r"^reward my_rewards\.colourful:Colourful, ready in", by_path, flags=re.MULTILINE)
    assert re.search(r"^ok    batch split  scores differ by", by_path, flags=re.MULTILINE)
    assert "\na good reward\n" in by_path
    assert "FAIL" not in by_path
    assert_it_trained(runs(newcomer)[0], "Colourful")


def test_a_class_of_an_installed_package_is_used_by_its_name(newcomer: Path, by_name: str) -> None:
    assert re.search(r"^colourful +pixel +entry point of my-rewards 0\.1\.0$", by_name, flags=re.MULTILINE)
    assert_it_trained(runs(newcomer)[1], "colourful")


def test_the_option_reaches_the_reward(newcomer: Path, by_name: str) -> None:
    doubled, plain = (json.loads((run / "metrics.jsonl").read_text().splitlines()[0]) for run in runs(newcomer))
    assert doubled["eval/Colourful/mean"] == pytest.approx(2 * plain["eval/colourful/mean"], rel=1e-5)
