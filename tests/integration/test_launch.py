"""`launch/multinode.sh`: two Ray nodes on this machine, the second behind a stand-in for ssh."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from flowrl.actors.group import RayRuntime
from flowrl.base import checkpoint
from flowrl.base.errors import UserError
from flowrl.config import dump
from flowrl.doctor.versions import version_report
from tests.integration.runs import TinyRun, TinyRuns, same, unequal
from tests.integration.test_ray_runs import processes

ROOT = Path(__file__).parents[2]
POCKET = ROOT / "configs" / "pocket" / "ditreward.yaml"
HOSTS = "127.0.0.1,127.0.0.2"
# Like ssh it hands over its stdin and nothing of the environment, and what it is told can be read by all.
SSH = """#!/usr/bin/env bash
while [[ $1 == -* ]]; do shift 2; done
echo "$*" >>{log}
exec env -i PATH=/usr/bin:/bin HOME="$HOME" bash -c "${{*:2}}"
"""
SRUN = """#!/usr/bin/env bash
echo "$*" >>{log}
while [[ $1 == -* ]]; do shift; done
exec "$@"
"""
# Where it does not matter what Ray does: says that it is there, and stays.
RAY = """#!/usr/bin/env bash
for option in "$@"; do [[ $option != --temp-dir=* ]] || folder=${option#*=}; done
echo 10.0.0.1:6379 >"$folder/ray_current_cluster"
trap 'exit 0' TERM
while :; do sleep 0.1; done
"""
JOIN = """
import sys
from flowrl.actors.group import RayRuntime
from flowrl.base.errors import UserError
try:
    RayRuntime(address=sys.argv[1], threads=1, on_gpus=False, timeout_s=5.0)
except UserError as error:
    sys.exit(f"told: {error}")
"""
PLACED = {"mode": "split", "num_rollouts": 2, "num_scorers": 1, "num_learners": 1}
SETTINGS = {f"placement__{key}": value for key, value in PLACED.items()}


@dataclass(frozen=True, kw_only=True)
class Shell:
    """An environment with a stand-in for ssh; everything that is started in it bears a mark."""

    environment: dict[str, str]
    ssh_log: Path

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """Call `launch/multinode.sh`."""
        return subprocess.Popen(
            [ROOT / "launch" / "multinode.sh", *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def fail(self, *arguments: str | Path, code: int = 1) -> str:
        """What `launch/multinode.sh` says when it fails."""
        script = self.start(*arguments)
        said, _ = script.communicate(timeout=120)
        assert script.returncode == code, said
        return said

    def add(self, name: str, text: str) -> None:
        """Put a program before all others on the PATH."""
        path = self.ssh_log.parent / "bin" / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)


def left_behind() -> set[Path]:
    """Folders of processes that are no more."""
    folders = Path("/tmp").glob("flowrl-*-*")
    return {folder for folder in folders if not Path("/proc", folder.name.split("-")[1]).exists()}


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """The environment; when the test has ended, so has all that was started in it, and its folders are gone."""
    marker, log, programs = uuid.uuid4().hex, tmp_path / "ssh.log", tmp_path / "bin"
    programs.mkdir()
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH_")}
    before = left_behind()
    made = Shell(environment=environment | {"PATH": path, "FLOWRL_TEST": marker}, ssh_log=log)
    made.add("ssh", SSH.format(log=log))
    yield made
    assert processes(marker) == {}
    assert left_behind() <= before


@pytest.fixture
def config(runs: TinyRuns, tmp_path: Path) -> Callable[..., Path]:
    """Writes the configuration of a run on actors into a file; the run's folder stands beside it."""

    def write(name: str, **changes: object) -> Path:
        path = tmp_path / f"{name}.yaml"
        path.write_text(dump(runs.config(tmp_path / name, **SETTINGS, **changes)), encoding="utf-8")
        return path

    return write


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_on_two_nodes_is_the_run_in_one_process(
    runs: TinyRuns, shell: Shell, config: Callable[..., Path], tmp_path: Path
) -> None:
    script = shell.start("--hosts", HOSTS, config("two", run__steps=2))
    said, _ = script.communicate(timeout=300)
    assert script.returncode == 0, said
    assert re.search(r"^Ray: 2 nodes at [\d.]+:\d+$", said, flags=re.MULTILINE)
    local = runs.run(run__steps=2)
    two = TinyRun(folder=tmp_path / "two")
    assert same(two.adapter, local.adapter)
    assert unequal(two, local) == []
    [told] = shell.ssh_log.read_text(encoding="utf-8").splitlines()
    assert re.fullmatch(r"127\.0\.0\.2 cd \S+ && exec \S+launch/ray/node\.sh --stdin --address [\d.]+:\d+ ?", told)


@pytest.mark.ray
@pytest.mark.slow
def test_a_signal_ends_the_run_after_its_step_and_a_wrong_token_is_refused(
    shell: Shell, config: Callable[..., Path], tmp_path: Path
) -> None:
    script = shell.start("--hosts", HOSTS, config("stopped", run__steps=100000))
    folder = tmp_path / "stopped"
    try:
        deadline = time.monotonic() + 240
        while not (folder / "metrics.jsonl").is_file() or len(TinyRun(folder=folder).metrics) < 2:
            assert script.poll() is None, script.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        [told] = shell.ssh_log.read_text(encoding="utf-8").splitlines()
        address = told.split()[-1]
        none, wrong = "Token authentication is enabled but no authentication token was found", "Failed to connect"
        for token, says in (({}, none), ({"RAY_AUTH_TOKEN": "0" * 64}, wrong)):
            environment = shell.environment | {"RAY_AUTH_MODE": "token", "HOME": "/nowhere"} | token
            joined = subprocess.run(
                [sys.executable, "-c", JOIN, address], env=environment, stderr=subprocess.PIPE, text=True
            )
            assert joined.returncode == 1
            assert f"told: placement.ray_address: Ray at {address} did not let this process in ({says}" in joined.stderr
    finally:
        script.send_signal(signal.SIGTERM)
        said, _ = script.communicate(timeout=120)
    assert script.returncode == 0, said
    last = TinyRun(folder=folder).metrics[-1]["step"]
    assert f"SIGTERM: stopped after step {last}" in said
    newest, problems = checkpoint.newest(folder / "checkpoints")
    assert newest is not None
    assert (checkpoint.step_of(newest), problems) == (last, [])


def test_a_node_that_cannot_be_reached_or_does_not_come_or_has_other_code_is_named(
    shell: Shell, tmp_path: Path
) -> None:
    shell.add("ray", RAY)
    shell.add("ssh", "#!/bin/sh\necho 'Permission denied (publickey)' >&2\nexit 255\n")
    said = shell.fail("--hosts", HOSTS, POCKET)
    assert "127.0.0.2: Permission denied (publickey)\nerror: 127.0.0.2: the node ended before it was ready" in said
    shell.add("ssh", "#!/bin/sh\nexec cat >/dev/null\n")
    said = shell.fail("--hosts", HOSTS, "--timeout", "6", POCKET)
    assert said == "error: not there within 6 s: 127.0.0.2; --timeout waits longer\n"
    here = version_report()
    versions = tuple((name, "0.0.9" if name == "flowrl" else version) for name, version in here.versions)
    report = replace(here, host="b", versions=versions).to_json()
    other = tmp_path / "checkout" / "flowrl" / "doctor"
    other.mkdir(parents=True)
    for package in (other, other.parent):
        (package / "__init__.py").touch()
    (other / "versions.py").write_text(f"print({report!r})", encoding="utf-8")
    shell.add("ssh", SSH.format(log=shell.ssh_log).replace('"${*:2}"', f'"cd {other.parents[1]} && ${{2#*&&}}"'))
    said = shell.fail("--hosts", HOSTS, POCKET)
    assert re.search(r"the nodes differ; install the same everywhere:\nflowrl is .* on \S+ and 0\.0\.9 on b\n", said)


def test_in_an_allocation_nodes_are_reached_by_srun_and_the_exit_code_is_that_of_the_training(
    shell: Shell, tmp_path: Path
) -> None:
    shell.add("ray", RAY)
    shell.add("srun", SRUN.format(log=shell.ssh_log))
    shell.add("scontrol", "#!/bin/sh\necho n1\necho 127.0.0.2\n")
    shell.environment.update(SLURM_JOB_NODELIST="n[1-2]", SLURMD_NODENAME="n1")
    said = shell.fail("--srun", tmp_path / "none.yaml", code=2)
    assert said == f"flowrl: error: {tmp_path / 'none.yaml'}: no such config file\n"  # before Ray is started anywhere
    said = shell.fail("--srun", "--resume", tmp_path / "none", code=2)
    assert said.startswith(f"Ray: 2 nodes at 10.0.0.1:6379\nflowrl: error: {tmp_path / 'none'}")
    assert "--nodes=1 --ntasks=1 --overlap --nodelist=127.0.0.2" in shell.ssh_log.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--hosts", "192.0.2.77,127.0.0.2", "a.yaml"], "192.0.2.77 is not this machine"),
        (["--hosts", "127.0.0.1,name.invalid", "a.yaml"], "no way from this machine to name.invalid"),
        (["--hosts", HOSTS], "no CONFIG is given"),
        (["a.yaml"], "give --hosts a,b,c, this machine first, or --srun"),
        (["--srun", "a.yaml"], "this is no SLURM allocation"),
        (["--host", HOSTS, "a.yaml"], "unknown option --host"),
    ],
)
def test_what_cannot_work_is_said_before_anything_starts(shell: Shell, arguments: list[str], says: str) -> None:
    assert says in shell.fail(*arguments)


def test_an_address_at_which_nobody_answers_is_an_error_at_once() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UserError, match=rf"^placement.ray_address: nobody answers at {address} \(.*refused\)"):
            RayRuntime(address=address, threads=1, on_gpus=False, timeout_s=5.0)
