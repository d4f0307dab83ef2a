"""Run directories: made once, never lost by accident, with a record of their origin."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import ANY

import pytest
from run_fixture import FakeRun, config_of, write_run

from flowrl.base.atomic_file import write_atomically
from flowrl.base.environment import environment, read_environments
from flowrl.config import ConfigError, RunConfig, load
from flowrl.run_dir import RunDir, begin, claim, release, settle

_RUN = FakeRun(steps=4, every=2, prompts=("a large red circle on sand",))


def config_in(parent: Path, *, name: str = "ditreward", overwrite: bool = False) -> RunConfig:
    config = config_of(replace(_RUN, name=name), parent)
    config.run.overwrite = overwrite
    return config


def begun(config: RunConfig, *, resume: bool = False) -> RunDir:
    folder = claim(config, resume=resume)
    begin(folder, config, resume=resume)
    return folder


def test_a_new_run_gets_its_files(tmp_path: Path) -> None:
    config = config_in(tmp_path / "runs")
    folder = begun(config)
    assert folder.path == tmp_path / "runs" / "ditreward"
    assert load(folder.config) == config
    assert folder.samples.is_dir()
    (start,) = read_environments(folder.path / "env.json")
    assert start.pid == os.getpid()
    assert start.python == sys.version.split()[0]
    assert start.cpus >= 1
    assert start.memory_gib > 0.1
    assert start.started.endswith("+00:00")
    assert start.packages["torch"].split("+")[0].count(".") == 2
    assert json.loads((folder.path / "env.json").read_text())["git_commit"] == start.git_commit


def test_a_run_cannot_take_the_word_for_the_newest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.dir must not be called latest"):
        claim(config_in(tmp_path, name="latest"))


def test_a_run_is_not_overwritten_unasked(tmp_path: Path) -> None:
    path = write_run(tmp_path, _RUN)
    before = (path / "metrics.jsonl").read_text()
    with pytest.raises(ConfigError) as caught:
        claim(config_in(tmp_path))
    message = str(caught.value)
    for part in (str(path), f"flowrl train --resume {path}", "run.overwrite=true", "run.name=ditreward-2"):
        assert part in message
    assert (path / "metrics.jsonl").read_text() == before


def test_overwrite_starts_anew_and_spares_foreign_files(tmp_path: Path) -> None:
    path = write_run(tmp_path, _RUN)
    (path / "notes.txt").write_text("mine")
    (path / "checkpoints").mkdir()
    (path / "checkpoints" / "step_000002").write_text("state")
    folder = begun(config_in(tmp_path, overwrite=True))
    assert not (path / "metrics.jsonl").exists()
    assert not folder.checkpoints.exists()
    assert list(folder.samples.iterdir()) == []
    assert (path / "notes.txt").read_text() == "mine"


def test_overwrite_does_not_touch_a_folder_that_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "ditreward").mkdir()
    (tmp_path / "ditreward" / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"must be new or hold a run, but it holds other files \(thesis\.tex\)"):
        claim(config_in(tmp_path, overwrite=True))
    assert (tmp_path / "ditreward" / "thesis.tex").exists()


def test_a_start_that_got_nowhere_can_be_repeated(tmp_path: Path) -> None:
    del_me = begun(config_in(tmp_path))
    (del_me.path / "metrics.jsonl").touch()
    del del_me
    again = begun(config_in(tmp_path))
    assert len(read_environments(again.path / "env.json")) == 1


def test_resume_keeps_everything_and_adds_to_the_record(tmp_path: Path) -> None:
    path = write_run(tmp_path, _RUN)
    before = {name: (path / name).read_bytes() for name in ("metrics.jsonl", "config.yaml")}
    folder = begun(config_in(tmp_path), resume=True)
    assert {name: (path / name).read_bytes() for name in before} == before
    first, second = read_environments(folder.path / "env.json")
    assert first.pid == 4242
    assert second.pid == os.getpid()
    assert json.loads((path / "env.json").read_text())["python"] == "3.11.9"  # the first start stays on top


def test_a_start_that_fails_leaves_what_was_there_and_nothing_new(tmp_path: Path) -> None:
    path = write_run(tmp_path, _RUN)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    release(claim(config_in(tmp_path, overwrite=True)))
    assert {file: file.read_bytes() for file in before} == before
    other = claim(config_in(tmp_path, name="new"))
    assert other.path.is_dir()
    release(other)
    assert not other.path.exists()
    kept = begun(config_in(tmp_path, name="new"))
    settle(kept)
    release(kept)
    assert kept.config.is_file()


def test_a_run_that_came_to_no_figure_gives_back_what_it_overwrote(tmp_path: Path) -> None:
    path = write_run(tmp_path, _RUN)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    release(begun(config_in(tmp_path, overwrite=True)))
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before | {path / ".lock": ANY}
    # Killed, it could not: the next start does, and asks again before it overwrites.
    begun(config_in(tmp_path, overwrite=True))
    with pytest.raises(ConfigError, match="must be new, but it holds a run already"):
        claim(config_in(tmp_path))
    claim(config_in(tmp_path, overwrite=True))
    assert {file: file.read_bytes() for file in before} == before
    settled = begun(config_in(tmp_path, overwrite=True))
    settle(settled)
    release(settled)
    assert not (path / "metrics.jsonl").exists()
    assert not (path / ".before").exists()


def test_resume_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must hold a run to resume, but there is no .*config\.yaml"):
        claim(config_in(tmp_path), resume=True)
    assert list(tmp_path.iterdir()) == []


def test_too_little_disk_space_is_found_before_anything_is_lost(tmp_path: Path) -> None:
    path = write_run(tmp_path, _RUN)
    with pytest.raises(ConfigError) as caught:
        claim(config_in(tmp_path, overwrite=True), adapter_bytes=10**19)
    message = str(caught.value)
    assert "GB of free disk space, for 1 checkpoint of 40,000,000,000 GB and what else a run writes" in message
    assert "its disk has" in message
    assert (path / "metrics.jsonl").exists()


def free_disk(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=size))


@pytest.mark.parametrize(
    ("steps", "every", "keep", "at_once"),
    [(100, 20, 2, 3), (100, 20, 9, 5), (100, 0, 2, 1), (30, 20, 2, 2), (0, 20, 2, 0)],
)
def test_room_is_asked_for_the_checkpoints_that_lie_there_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, every: int, keep: int, at_once: int
) -> None:
    config = config_in(tmp_path)
    config.run.steps, config.checkpoint.every, config.checkpoint.keep = steps, every, keep
    needed = (4 * at_once + 1) * 10**9 + 256 * 10**6  # and the adapter that is exported at the end
    free_disk(monkeypatch, needed - 1)
    with pytest.raises(ConfigError, match=rf"for {at_once} checkpoints? of 4\.00 GB .*; free some, lower"):
        claim(config, adapter_bytes=10**9)
    free_disk(monkeypatch, needed)
    release(claim(config, adapter_bytes=10**9))


def test_what_is_there_makes_room_for_what_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_run(tmp_path, _RUN)
    for folder in ("checkpoints/step_000004", "lora"):
        (path / folder).mkdir(parents=True, exist_ok=True)
        (path / folder / "more").write_bytes(bytes(1000))
    files = (file for name in ("checkpoints", "lora") for file in (path / name).rglob("*") if file.is_file())
    there = sum(file.stat().st_size for file in files)
    free_disk(monkeypatch, 5 * 10**6 - there + 256 * 10**6)
    release(claim(config_in(tmp_path), resume=True, adapter_bytes=10**6))
    with pytest.raises(ConfigError, match="MB of free disk space"):
        claim(config_in(tmp_path), resume=True, adapter_bytes=10**6 + 1)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/ditreward must be writable"):
        claim(config_in(tmp_path / "file"))
    (tmp_path / "ditreward").write_text("")
    with pytest.raises(ConfigError, match="must be a directory, but a file of that name exists"):
        claim(config_in(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_place_without_rights_is_named(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(ConfigError, match="must be writable: Permission denied"):
        claim(config_in(tmp_path / "locked"))


def test_two_processes_do_not_share_a_run(tmp_path: Path) -> None:
    program = (
        "import sys; from flowrl.config import load; from flowrl.run_dir import begin, claim\n"
        "config = load(sys.argv[1]); folder = claim(config); begin(folder, config)\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    source = tmp_path / "source.yaml"
    source.write_text(
        f"run: {{name: ditreward, dir: {tmp_path / 'ditreward'}}}\nrewards: {{train: [{{name: oracle}}]}}"
    )
    command = [sys.executable, "-c", program, str(source)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        with pytest.raises(ConfigError, match=f"process {other.pid} is writing to it"):
            claim(config_in(tmp_path))
        with pytest.raises(ConfigError, match=f"process {other.pid} is writing to it"):
            claim(config_in(tmp_path), resume=True)
        other.kill()
    claim(config_in(tmp_path))  # a killed process holds nothing


def test_write_atomically_replaces_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert [child.name for child in tmp_path.iterdir()] == ["page.html"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_write_atomically_leaves_nothing_behind_when_it_fails(tmp_path: Path) -> None:
    (tmp_path / "page.html").mkdir()
    with pytest.raises(OSError, match="page"):
        write_atomically(tmp_path / "page.html", b"text")
    assert [child.name for child in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"python": "3.11"}', '{"resumes": 3}'])
def test_a_broken_record_of_the_environment_reads_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "env.json").write_text(text)
    assert read_environments(tmp_path / "env.json") == []
    assert read_environments(tmp_path / "missing.json") == []


def test_the_command_is_the_one_that_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/home/x/.venv/bin/flowrl", "train", "configs/my run.yaml", "run.seed=3"])
    assert environment().command == "flowrl train 'configs/my run.yaml' run.seed=3"
    monkeypatch.setattr(sys, "argv", ["/home/x/flowrl/__main__.py", "train"])
    assert environment().command == "python -m flowrl train"


@pytest.mark.parametrize("killed_at", range(1, 12))
@pytest.mark.parametrize("during", ["begin", "restore"])
def test_a_kill_at_any_rename_loses_nothing_of_the_run_that_was_to_be_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, during: str, killed_at: int
) -> None:
    path = write_run(tmp_path, _RUN)
    (path / "checkpoints").mkdir()
    (path / "checkpoints" / "state").write_text("weights")
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    config = config_in(tmp_path, overwrite=True)
    if during == "restore":
        begun(config)
    rename, count = Path.rename, 0

    def dies(self: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count == killed_at:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", dies)
    with suppress(KeyboardInterrupt):
        folder = claim(config)
        if during == "begin":
            begin(folder, config)
    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(ConfigError, match="must be new, but it holds a run already"):
        claim(config_in(tmp_path))  # which puts back what it finds, and asks
    assert {file: file.read_bytes() for file in before} == before


def test_an_interrupted_overwrite_cannot_be_resumed_and_the_earlier_run_is_back(tmp_path: Path) -> None:
    path = write_run(tmp_path, _RUN)
    before = (path / "metrics.jsonl").read_bytes()
    begun(config_in(tmp_path, overwrite=True))
    with pytest.raises(ConfigError, match=r"has nothing to resume: .* The earlier run is back"):
        claim(config_in(tmp_path), resume=True)
    assert (path / "metrics.jsonl").read_bytes() == before
    claim(config_in(tmp_path), resume=True)


def test_a_new_run_that_was_killed_before_its_first_figure_can_be_resumed(tmp_path: Path) -> None:
    begun(config_in(tmp_path))
    folder = begun(config_in(tmp_path), resume=True)
    assert folder.config.is_file()
