"""`launch/slurm/element.sh` and the way into a container, with stand-ins for SLURM, the driver and the container."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from flowrl.base import checkpoint
from flowrl.base.errors import UserError
from flowrl.config import load
from flowrl.matrix.experiment import Run
from flowrl.matrix.manifest import MANIFEST, Element, write_manifest
from flowrl.slurm.attempt import begin, state
from flowrl.slurm.job import Job
from flowrl.slurm.scripts import Places, render
from flowrl.slurm.site import ContainerSection, Site

ROOT = Path(__file__).parents[2]
DRIVER = """#!/usr/bin/env bash
echo "driver $*"
trap 'echo told USR1; {at_usr1}' USR1
trap 'echo told TERM; exit 143' TERM
{first}
for _ in {{1..200}}; do sleep 0.1; done
"""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node of the cluster: programs that stand for SLURM's and for the driver, and an experiment of two runs."""

    folder: Path
    elements: list[Element]

    @property
    def manifest(self) -> Path:
        """Of the experiment."""
        return self.folder / "runs" / MANIFEST

    def add(self, name: str, text: str) -> None:
        """Put a program before all others on the PATH."""
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)

    def start(self, *options: str, index: int = 1, restarts: int = 0) -> subprocess.Popen[str]:
        """Start an element as a batch script does."""
        places = [str(self.folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
        slurm = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(index), "SLURM_JOB_NUM_NODES": "1"}
        slurm |= {"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}
        return subprocess.Popen(
            [ROOT / "launch" / "slurm" / "element.sh", *options, self.manifest],
            env=os.environ | slurm | {"PATH": os.pathsep.join(places), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def requeued(self) -> str:
        """The calls of scontrol."""
        log = self.folder / "scontrol.log"
        return log.read_text(encoding="utf-8") if log.is_file() else ""

    def advance(self, element: Element, step: int) -> None:
        """Make a checkpoint."""
        checkpoint.save(
            element.dir / "checkpoints", step, lambda folder: (folder / "a").write_text("a") and None, keep=2
        )

    def finish(self, element: Element) -> None:
        """Leave what a finished run leaves."""
        (element.dir / "lora").mkdir(parents=True)
        (element.dir / "lora" / "a").touch()
        (element.dir / "metrics.jsonl").write_text(json.dumps({"step": 40}) + "\n", encoding="utf-8")


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """The node; the driver stands for one that works until USR1, and then ends well."""
    config = load(ROOT / "configs" / "pocket" / "ditreward.yaml")
    runs = []
    for arm in ("one", "two"):
        run = dataclasses.replace(config.run, name=f"{arm}-0", dir=str(tmp_path / "runs" / f"{arm}-0"), steps=40)
        runs.append(Run(arm=arm, seed=0, config=dataclasses.replace(config, run=run)))
    made = Node(folder=tmp_path, elements=write_manifest(runs, tmp_path / "runs"))
    (tmp_path / "runs" / "slurm").mkdir()
    made.add("flowrl", DRIVER.format(at_usr1="exit 0", first=""))
    made.add("squeue", "#!/bin/sh\necho RUNNING\n")
    made.add("scontrol", f"#!/bin/sh\necho $* >>{tmp_path}/scontrol.log\n")
    return made


def say(script: subprocess.Popen[str], word: str) -> None:
    """Read what a script prints until a word comes."""
    assert script.stdout is not None
    while word not in (line := script.stdout.readline()):
        assert line, f"ended before {word}"


def test_a_signal_goes_to_the_driver_and_the_element_is_requeued_by_its_own_id(node: Node) -> None:
    script = node.start()
    say(script, f"driver matrix {node.manifest} --element 1 placement.ray_address=local")
    script.send_signal(signal.SIGUSR1)
    said, _ = script.communicate(timeout=30)
    assert script.returncode == 0
    assert "told USR1" in said
    assert node.requeued() == "requeue 7_1\n"


def test_a_driver_that_does_not_end_in_time_is_requeued_with_its_last_checkpoint(node: Node) -> None:
    node.add("flowrl", DRIVER.format(at_usr1=":", first=""))
    script = node.start("--grace", "2")
    say(script, "driver")
    script.send_signal(signal.SIGUSR1)
    say(script, "no checkpoint 1 s after the signal; the last one has to do")
    say(script, "7_1: requeued")
    script.send_signal(signal.SIGTERM)  # as SLURM does then
    said, _ = script.communicate(timeout=30)
    assert "told TERM" in said
    assert node.requeued() == "requeue 7_1\n"
    assert script.returncode == 0


def test_a_run_that_is_cancelled_is_not_requeued(node: Node) -> None:
    node.add("squeue", "#!/bin/sh\necho COMPLETING\n")
    script = node.start()
    say(script, "driver")
    script.send_signal(signal.SIGTERM)
    said, _ = script.communicate(timeout=30)
    assert "7_1: not requeued, for it is COMPLETING" in said
    assert node.requeued() == ""


@pytest.mark.parametrize("code", [1, 2, 137])
def test_an_error_of_the_driver_is_that_of_the_element(node: Node, code: int) -> None:
    node.add("flowrl", f"#!/bin/sh\nexit {code}\n")
    script = node.start()
    script.communicate(timeout=30)
    assert (script.returncode, node.requeued()) == (code, "")


def test_a_finished_run_is_not_requeued(node: Node) -> None:
    node.add("flowrl", "#!/bin/sh\nexit 0\n")
    node.finish(node.elements[1])
    script = node.start()
    script.communicate(timeout=30)
    assert (script.returncode, node.requeued()) == (0, "")
    assert [state(node.manifest, index) for index in (0, 1)] == ["unfinished", "finished"]


def test_an_attempt_that_got_no_further_is_the_last(node: Node) -> None:
    element = node.elements[1]
    assert begin(node.manifest, 1, restart=0, most=9) == "two-0: attempt 1, after step 0"
    node.advance(element, 3)
    assert begin(node.manifest, 1, restart=1, most=9) == "two-0: attempt 2, after step 3"
    script = node.start(restarts=2)
    said, _ = script.communicate(timeout=30)
    assert script.returncode == 2
    assert said.startswith(f"error: {element.dir}: no progress between two restarts: both began after step 3;")
    node.advance(element, 4)
    with pytest.raises(UserError, match=r"restarted 2 times; max_restarts = 1 allows no more"):
        begin(node.manifest, 1, restart=2, most=1)
    node.advance(element, 4)
    assert begin(node.manifest, 1, restart=0, most=9) == "two-0: attempt 1, after step 4"  # submitted again


@pytest.mark.parametrize(
    ("arguments", "says"),
    [([], "give one MANIFEST"), (["--grace"], "--grace takes a value"), (["--x"], "unknown option --x")],
)
def test_a_wrong_call_is_told(arguments: list[str], says: str) -> None:
    script = [str(ROOT / "launch" / "slurm" / "element.sh"), *arguments]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 1
    assert says in done.stderr


@pytest.mark.parametrize("kind", ["apptainer", "pyxis"])
def test_a_program_of_the_image_is_called_by_its_name_with_its_words(kind: str, node: Node) -> None:
    places = Places(checkout=ROOT, manifest=node.manifest, programs=node.folder)
    container = ContainerSection(kind="apptainer" if kind == "apptainer" else "pyxis", image="image", mounts=["/data"])
    job = Job(indices=(0,), nodes=1, gpus_per_node=1, cpus_per_node=1)
    text = render(job, Site(container=container), places).container
    outside = {"apptainer": "apptainer", "pyxis": "srun"}[kind]
    node.add(outside, '#!/bin/sh\nfor word in "$@"; do echo "[$word]"; done\n')
    node.add("ray", text)
    environment = os.environ | {"PATH": f"{node.folder / 'bin'}:{os.environ['PATH']}", "SLURMD_NODENAME": "n1"}
    called = [node.folder / "bin" / "ray", "start", "two words"]
    said = subprocess.run(called, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said[-3:] == ["[ray]", "[start]", "[two words]"]
    folders = [str(ROOT), str(node.manifest.parent), "/tmp", "/dev/shm", "/data"]
    if kind == "apptainer":
        bind = ",".join(folders)
        assert said[:-3] == ["[exec]", "[--nv]", "[--bind]", f"[{bind}]", "[--pwd]", f"[{ROOT}]", "[image]"]
    else:
        mounts = ",".join(f"{one}:{one}" for one in folders)
        assert said[3:-3] == [
            "[--nodelist=n1]",
            "[--container-image=image]",
            f"[--container-mounts={mounts}]",
            f"[--container-workdir={ROOT}]",
        ]
