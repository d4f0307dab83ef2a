"""The folder of a cluster's sockets."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from flowrl.actors import socket_folder


def test_folders_of_killed_processes_go_and_those_of_living_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_folder, "_ROOT", tmp_path)
    with subprocess.Popen(["true"]) as ended:
        pass
    kept = [tmp_path / f"flowrl-{os.getpid()}-abc", tmp_path / "flowrl-notes", tmp_path / "other"]
    gone = tmp_path / f"flowrl-{ended.pid}-abc"
    for folder in (*kept, gone):
        folder.mkdir()
        (folder / "file").touch()
    made = Path(socket_folder.make())
    assert made.name.startswith(f"flowrl-{os.getpid()}-")
    assert sorted(tmp_path.iterdir()) == sorted([*kept, made])
