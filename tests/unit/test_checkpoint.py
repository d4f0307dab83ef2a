"""Checkpoints are whole or absent, and the newest whole one is found."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flowrl.base import checkpoint


def writer(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "weights.bin").write_text(text * 1000)
        (folder / "state.json").write_text(text)

    return write


def saved(root: Path, *steps: int, keep: int = 9) -> list[Path]:
    return [checkpoint.save(root, step, writer(f"step {step}"), keep=keep) for step in steps]


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_the_newest_checkpoint_is_found_by_number(tmp_path: Path) -> None:
    saved(tmp_path, 5, 10, 999_999, 1_000_000)
    found, problems = checkpoint.newest(tmp_path)
    assert found is not None
    assert checkpoint.step_of(found) == 1_000_000
    assert (found / "state.json").read_text() == "step 1000000"
    assert problems == []


def test_no_folder_and_an_empty_one_hold_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "absent") == (None, [])
    assert checkpoint.newest(tmp_path) == (None, [])


def truncate(folder: Path) -> None:
    file = folder / "weights.bin"
    file.write_bytes(file.read_bytes()[:100])


def flip(folder: Path) -> None:
    file = folder / "weights.bin"
    content = bytearray(file.read_bytes())
    content[50] ^= 1
    file.write_bytes(bytes(content))


HARMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated file": (truncate, r"weights.bin is not as it was written \(truncated or changed\)"),
    "flipped bit": (flip, "weights.bin is not as it was written"),
    "missing file": (lambda folder: (folder / "state.json").unlink(), "state.json is missing"),
    "missing manifest": (lambda folder: (folder / "MANIFEST.json").unlink(), "MANIFEST.json is missing"),
    "torn manifest": (lambda folder: (folder / "MANIFEST.json").write_text('{"step": 10, "fi'), "is not a manifest"),
    "binary manifest": (lambda folder: (folder / "MANIFEST.json").write_bytes(b"\xff\x00\xfe"), "is not a manifest"),
    "list for a manifest": (lambda folder: (folder / "MANIFEST.json").write_text("[1]"), "is not a manifest"),
    "list of files": (
        lambda folder: (folder / "MANIFEST.json").write_text('{"files": ["weights.bin"]}'),
        "is not a manifest",
    ),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_harmed_checkpoint_is_passed_over_with_the_reason(tmp_path: Path, harm: str) -> None:
    _, newest = saved(tmp_path, 5, 10)
    act, says = HARMS[harm]
    act(newest)
    found, [problem] = checkpoint.newest(tmp_path)
    assert found is not None
    assert checkpoint.step_of(found) == 5
    import re

    assert re.search(says, problem)


def test_what_stands_beside_checkpoints_is_left_alone(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    (tmp_path / "step_000007.copy").mkdir()
    (tmp_path / "step_000009").write_text("a file")
    (tmp_path / "notes.txt").write_text("mine")
    found, problems = checkpoint.newest(tmp_path)
    assert found is not None
    assert checkpoint.step_of(found) == 5
    assert problems == []
    saved(tmp_path, 6, keep=1)
    assert {"notes.txt", "step_000007.copy", "step_000006"} <= set(names(tmp_path))


def test_the_newest_few_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, 5, 10, 15, 20, keep=2)
    assert names(tmp_path) == ["step_000015", "step_000020"]


@pytest.mark.parametrize("keep", [1, 2])
def test_a_run_that_went_back_does_not_lose_what_it_saves_to_torn_checkpoints_ahead(tmp_path: Path, keep: int) -> None:
    ahead = saved(tmp_path, 5, 10, 15)
    for folder in ahead[1:]:
        truncate(folder)
    saved(tmp_path, 6, keep=keep)
    found, problems = checkpoint.newest(tmp_path)
    assert found is not None
    assert checkpoint.step_of(found) == 6
    assert problems == []
    assert names(tmp_path) == ["step_000005", "step_000006"][-keep:]


def test_a_checkpoint_can_be_saved_again(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    folder = checkpoint.save(tmp_path, 5, writer("anew"), keep=2)
    assert (folder / "state.json").read_text() == "anew"
    assert checkpoint.problem(folder) is None


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_while_writing_leaves_nothing_new_and_nothing_lost(tmp_path: Path, error: BaseException) -> None:
    saved(tmp_path, 5)

    def write(folder: Path) -> None:
        (folder / "weights.bin").write_text("half")
        raise error

    with pytest.raises(type(error)):
        checkpoint.save(tmp_path, 10, write, keep=1)
    assert names(tmp_path) == ["step_000005"]
    found, _ = checkpoint.newest(tmp_path)
    assert found is not None


def test_a_process_that_is_killed_while_writing_leaves_no_checkpoint_and_its_remains_are_cleared(
    tmp_path: Path,
) -> None:
    saved(tmp_path, 5)
    code = f"""
import os, signal
from pathlib import Path
from flowrl.base import checkpoint
def write(folder):
    (folder / "weights.bin").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
checkpoint.save(Path({str(tmp_path)!r}), 10, write, keep=2)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, env={**os.environ})
    assert done.returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 2
    found, problems = checkpoint.newest(tmp_path)
    assert found is not None
    assert checkpoint.step_of(found) == 5
    assert problems == []
    saved(tmp_path, 10)
    assert names(tmp_path) == ["step_000005", "step_000010"]


def test_the_manifest_names_every_file(tmp_path: Path) -> None:
    [folder] = saved(tmp_path, 5)
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    assert manifest["step"] == 5
    assert set(manifest["files"]) == {"weights.bin", "state.json"}
