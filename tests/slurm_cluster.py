"""A real SLURM cluster of two nodes on this machine, in one folder: munged, slurmctld and two slurmd.

The nodes are called 127.0.0.1 and 127.0.0.2, so that their names lead to this machine without an entry in /etc/hosts.
"""

from __future__ import annotations

import getpass
import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

NODES = ("127.0.0.1", "127.0.0.2")
CPUS = 8  # that each node claims to have
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")
# The requeued begin again when the credential of the attempt before has expired: two minutes by default.
_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
SwitchType=switch/none
KillWait=10
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=100000
NodeName={nodes[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus} RealMemory=2000
NodeName={nodes[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cpus} RealMemory=2000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=2
"""


def missing_programs() -> list[str]:
    """The programs of SLURM and munge that are not installed."""
    return [name for name in PROGRAMS if _program(name) is None]


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A cluster that is up, as its users see it."""

    environment: dict[str, str]

    def run(self, *command: str) -> str:
        """What a command says; raises AssertionError where it fails."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        if done.returncode:
            raise AssertionError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def job(self, job: str) -> dict[str, str]:
        """What the controller knows of a job or an element, such as its JobState and Restarts."""
        return dict(re.findall(r"(\w+)=(\S*)", self.run("scontrol", "--oneliner", "show", "job", job)))

    def state(self, job: str) -> str:
        """Such as RUNNING or COMPLETED."""
        return self.job(job)["JobState"]


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """The cluster, until the context ends; then all its jobs and programs do."""
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir(parents=True)
    conf = folder / "slurm.conf"
    text = _CONF.format(
        host=socket.gethostname().partition(".")[0],
        user=getpass.getuser(),
        folder=folder,
        nodes=NODES,
        cpus=CPUS,
        ports=_free_ports(3),
    )
    conf.write_text(text, encoding="utf-8")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
    made = Cluster(environment=kept | {"SLURM_CONF": str(conf)})
    with ExitStack() as programs:
        _start_munge(folder, programs)
        controller = ["slurmctld", "-D", "-c", "-f", str(conf)]
        _start(controller, folder / "controller.out", programs, environment=made.environment)
        for node in NODES:
            slurmd = ["slurmd", "-D", "-N", node, "-f", str(conf)]
            _start(slurmd, folder / f"{node}.out", programs, environment=made.environment)
        until(lambda: _idle(made) == len(NODES), seconds=60, what=lambda: f"nodes that are idle; logs are in {folder}")
        programs.callback(_end_jobs, made)
        yield made


def until(done: Callable[[], bool], *, seconds: float, what: Callable[[], object]) -> None:
    """Wait for something; raises AssertionError with what `what` then says."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what()}"
        time.sleep(0.3)


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def _start_munge(folder: Path, programs: ExitStack) -> None:
    key, there = folder / "munge.key", folder / "munge.socket"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    files = {"key-file": key, "socket": there, "pid-file": folder / "munge.pid", "seed-file": folder / "munge.seed"}
    options = [f"--{name}={path}" for name, path in (files | {"log-file": folder / "munge.log"}).items()]
    _start(["munged", "--foreground", "--force", *options], folder / "munge.out", programs)  # --force: a folder of ours
    until(there.exists, seconds=20, what=lambda: f"{there}")


def _start(command: list[str], log: Path, programs: ExitStack, environment: dict[str, str] | None = None) -> None:
    """Start a program that ends with `programs`."""
    executable = _program(command[0])
    assert executable is not None
    with log.open("wb") as file:
        process = subprocess.Popen(
            [executable, *command[1:]], stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=environment
        )

    def end() -> None:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    programs.callback(end)


def _idle(cluster: Cluster) -> int:
    done = subprocess.run(
        ["sinfo", "--noheader", "--Node", "--partition=main", "--states=idle"],
        env=cluster.environment,
        capture_output=True,
        text=True,
    )
    return len(done.stdout.splitlines())


def _end_jobs(cluster: Cluster) -> None:
    def jobs() -> str:
        return cluster.run("squeue", "--noheader")

    cluster.run("scancel", "--user", getpass.getuser())
    until(lambda: jobs() == "", seconds=60, what=lambda: "jobs to end")


def _free_ports(count: int) -> list[int]:
    with ExitStack() as sockets:
        probes = [sockets.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
