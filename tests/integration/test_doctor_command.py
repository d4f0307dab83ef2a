"""The command on the machine that the tests run on: a step of training, a small /dev/shm, a cluster of two nodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from flowrl.actors.group import ask_each_node
from flowrl.doctor.collect import collect
from flowrl.doctor.finding import Finding, examine
from flowrl.doctor.gpu_checks import gpu_checks
from flowrl.doctor.purpose import purpose_of
from flowrl.doctor.trial import tiny_step

ROOT = Path(__file__).parents[2]
POCKET = str(ROOT / "configs" / "pocket" / "ditreward.yaml")
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Examined:
    """What `flowrl doctor --json` said."""

    code: int
    verdict: str
    findings: dict[str, Finding]  # by subject and name


def doctor(*words: str, before: tuple[str, ...] = ()) -> Examined:
    """Run the command in a process of its own."""
    done = subprocess.run(
        [*before, sys.executable, "-m", "flowrl", "doctor", *words, "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert done.stdout.startswith("{"), done.stderr
    told = json.loads(done.stdout)
    return Examined(
        code=done.returncode,
        verdict=told["verdict"],
        findings={
            f"{one['subject']}: {one['name']}": Finding(
                verdict=one["verdict"], found=one["found"], advice=one["advice"]
            )
            for one in told["findings"]
        },
    )


def faults(examined: Examined) -> dict[str, Finding]:
    return {name: finding for name, finding in examined.findings.items() if finding.verdict == "problem"}


def test_the_pocket_run_can_start_here_and_a_step_is_trained(tmp_path: Path) -> None:
    examined = doctor(POCKET, f"run.dir={tmp_path / 'run'}")
    assert faults(examined) == {}
    assert examined.code == 0
    step = examined.findings["A step of training: on cpu"]
    assert step.found.startswith("sampled, scored and trained on 8 images in ")
    assert step.found.endswith("ratio of the first update off 1 by 0")
    assert not (tmp_path / "run").exists()


def test_a_run_that_cannot_start_is_refused_with_reasons(tmp_path: Path) -> None:
    examined = doctor(POCKET, f"model.path={tmp_path / 'none'}", "placement.device=cuda", "--no-step")
    assert (examined.code, examined.verdict) == (1, "problem")
    assert set(faults(examined)) >= {"Files of the run: policy", "Does the run fit: plan", "GPUs: GPU"}
    assert not [name for name in examined.findings if name.startswith("A step")]


def test_a_step_that_fails_says_why_and_how_to_see_more() -> None:
    slow = tiny_step("cpu", patience_s=0.2)
    assert (slow.verdict, slow.found) == ("problem", "not done after 0.2 s")
    told = tiny_step("cuda")
    assert told.verdict == "problem"
    assert told.found.startswith("failed: placement.device is cuda, but torch ")
    assert "placement.device=cuda --traceback" in told.advice


def test_a_shm_of_64_mb_is_told_with_the_remedy() -> None:
    # A mount in a namespace of its own: no other process sees it, and it is gone with the process.
    here = ("unshare", "--mount", "bash", "-c")
    mount = "mount -t tmpfs -o size=64m tmpfs /dev/shm"
    try:
        subprocess.run([*here, mount], capture_output=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("this user cannot mount a small /dev/shm")
    examined = doctor("--no-step", before=(*here, f'{mount} && exec "$@"', "bash"))
    told = examined.findings["Machine: /dev/shm"]
    assert (examined.code, told.verdict) == (1, "problem")
    assert told.found.startswith("67.1 MB of 67.1 MB free")
    assert "--shm-size=16g" in told.advice


@pytest.mark.gpu
def test_a_gpu_is_read_and_trains_a_step() -> None:
    machine = collect({})
    assert machine.torch is not None
    assert 0 < machine.torch.usable_gpus <= len(machine.graphics.gpus)
    assert machine.torch.nccl
    entries = list(examine(gpu_checks(machine, purpose_of(None, machine))))
    assert [entry for entry in entries if entry.finding.verdict == "problem"] == []
    assert tiny_step("cuda").verdict == "ok"


@pytest.mark.ray
@pytest.mark.slow
def test_nodes_that_hang_are_waited_for_together_and_the_others_answer() -> None:
    from ray.cluster_utils import Cluster

    def answer_or_hang() -> str:
        if "HANGS" in os.environ:
            time.sleep(60)
        return "here"

    size = {"num_cpus": 1, "object_store_memory": 80 * MIB}
    cluster = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(**size, env_vars={"HANGS": "1"})
        began = time.monotonic()
        answers = ask_each_node(answer_or_hang, address=cluster.address, timeout_s=20)
        took = time.monotonic() - began
    finally:
        cluster.shutdown()
    assert sorted(str(answer) for _, answer in answers) == ["here", "no answer in 20 s", "no answer in 20 s"]
    assert took < 39


@pytest.mark.ray
@pytest.mark.slow
def test_two_nodes_with_different_versions_are_told_apart(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    other = tmp_path / "peft-0.1.2.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: peft\nVersion: 0.1.2\n")
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": 80 * MIB, "include_dashboard": False},
    )
    try:
        same = doctor("--no-step", "--address", cluster.address)
        assert faults(same) == {}
        assert same.findings["Other nodes: versions"].found.startswith("equal on all nodes: Python 3.")
        cluster.add_node(num_cpus=1, object_store_memory=80 * MIB, env_vars={"PYTHONPATH": str(tmp_path)})
        told = doctor("--no-step", "--address", cluster.address)
    finally:
        cluster.shutdown()
    assert told.code == 1
    differs = told.findings["Other nodes: versions"]
    assert differs.verdict == "problem"
    assert "peft is " in differs.found
    assert "0.1.2 on " in differs.found
