"""An experiment run on this machine: each run is what it would be alone, and what is done is not done again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flowrl.cli.main import main
from flowrl.config import RewardSpec, dump
from flowrl.matrix.manifest import MANIFEST, read_manifest
from tests.cheap_rewards import BRIGHT, LATENT
from tests.integration.runs import TinyRun, TinyRuns, same, unequal

ROOT = Path(__file__).parents[2]


def experiment(folder: Path, runs: TinyRuns, arms: dict[str, str], **changes: object) -> Path:
    """An experiment on the tiny policy; of each arm the reward that it is trained on."""
    (folder / "base.yaml").write_text(
        dump(runs.config(folder / "unused", rewards__watch=[], **changes)), encoding="utf-8"
    )
    path = folder / "tiny.yaml"
    lines = ["question: Which?", f"base: {folder}/base.yaml", "differ: [rewards.train]", "seeds: [4]", "arms:"]
    lines += [f"  {arm}: {{overrides: ['rewards.train=[{{name: \"{reward}\"}}]']}}" for arm, reward in arms.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_runs_are_those_of_their_configuration_and_one_that_fails_stops_neither_others_nor_the_report(
    runs: TinyRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    path = experiment(tmp_path, runs, {"broken": "tests.cheap_rewards:Broken", "latent": LATENT, "bright": BRIGHT})
    command = ["matrix", str(path), "--out", str(tmp_path / "out"), "--run"]
    assert main(command) == 1
    told = capfd.readouterr()
    assert "the judge has left the room" in told.err
    assert "2 of 3 runs are done" in told.out
    out = tmp_path / "out"
    assert told.out.splitlines()[-2:] == [
        f"{out}/report.html",
        f"not judged yet: flowrl judge {out} --endpoint URL --model NAME, then flowrl report {out}",
    ]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<h1>Which?</h1>" in page
    assert "Of broken no run was evaluated after training" in page
    assert main(["report", str(out / MANIFEST), "--out", str(tmp_path / "page.html")]) == 0
    assert "<h1>Which?</h1>" in (tmp_path / "page.html").read_text(encoding="utf-8")
    for arm, reward in (("latent", LATENT), ("bright", BRIGHT)):
        alone = runs.run(run__seed=4, rewards__train=[RewardSpec(name=reward)], rewards__watch=[])
        found = TinyRun(folder=tmp_path / "out" / f"{arm}-4")
        assert same(found.adapter, alone.adapter)
        assert unequal(found, alone) == []
    written = (tmp_path / "out" / "latent-4" / "metrics.jsonl").stat()
    assert main(["matrix", str(tmp_path / "out" / MANIFEST), "--element", "1"]) == 0
    assert "all 5 steps are done" in capfd.readouterr().out
    assert (tmp_path / "out" / "latent-4" / "metrics.jsonl").stat() == written


@pytest.mark.slow
def test_a_signal_stops_the_experiment_after_a_step_and_the_same_command_goes_on(
    runs: TinyRuns, tmp_path: Path
) -> None:
    path = experiment(tmp_path, runs, {"latent": LATENT, "bright": BRIGHT}, run__steps=40, checkpoint__every=20)
    command = [sys.executable, "-m", "flowrl", "matrix", str(path), "--out", str(tmp_path / "out"), "--run"]
    log = tmp_path / "out" / "latent-4" / "metrics.jsonl"
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until = time.monotonic() + 120
    while not (log.is_file() and log.read_text().count("\n") > 2) and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, said
    steps = len(TinyRun(folder=log.parent).metrics) - 1
    assert 2 <= steps < 40
    assert not (tmp_path / "out" / "bright-4").exists()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    alone = runs.run(run__seed=4, run__steps=40, checkpoint__every=20, rewards__watch=[])
    found = TinyRun(folder=log.parent)
    assert same(found.adapter, alone.adapter)
    assert [row["step"] for row in found.metrics] == list(range(41))
    assert len(read_manifest(tmp_path / "out" / MANIFEST)) == 2
