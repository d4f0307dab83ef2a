"""The parts of the examination: reading the machine, checks that fail, reports of nodes, fitting a run, the page."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Generator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from flowrl.base.amounts import size
from flowrl.base.errors import UserError
from flowrl.cli.main import main
from flowrl.config import RunConfig, load
from flowrl.doctor.collect import collect, disk, packages
from flowrl.doctor.examination import Request, examination
from flowrl.doctor.finding import Check, Entry, Finding, examine, failed, fine, guarded, note, problem, tried
from flowrl.doctor.machine import Disk, GpuState, Machine
from flowrl.doctor.node_checks import ask_by_ssh, equal_versions, node_checks, node_state, own_name, reachable
from flowrl.doctor.nvidia import SmiError, ask_smi, graphics
from flowrl.doctor.page import as_json, lines, verdict
from flowrl.doctor.run_checks import file_checks, fit_checks, host_memory, verdict_here
from flowrl.doctor.versions import VersionReport, code_digest, differences, version_report
from flowrl.plan.run_plan import run_plan
from tests import tiny
from tests.unit.test_doctor_machine import GOOD, with_gpus

ROOT = Path(__file__).parents[2]
POCKET = ROOT / "configs" / "pocket" / "ditreward.yaml"
MIB = 2**20


def program(folder: Path, name: str, script: str) -> None:
    """Put a program in a folder that is searched first."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/bash\n{script}\n")
    file.chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose programs are found before others."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def test_this_machine_is_read_whole(tmp_path: Path) -> None:
    machine = collect({"runs": tmp_path / "a" / "b"}, shm=tmp_path)
    assert machine.cpus == len(os.sched_getaffinity(0))
    assert 0 < machine.memory_free <= machine.memory_total
    assert machine.shm_total is not None
    assert machine.shm_total >= machine.shm_free > 0
    assert machine.torch is not None
    assert machine.disks[0].writable
    assert not (tmp_path / "a").exists()
    assert collect({}, shm=tmp_path / "none").shm_total is None


def test_what_flowrl_needs_is_what_its_package_says() -> None:
    needed = {package.name: package for package in packages()}
    assert needed["torch"].wanted == ">=2.6"
    assert needed["torch"].version
    assert "pytest" not in needed


def test_a_file_in_the_way_of_a_folder_leads_to_its_disk(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert disk("runs", tmp_path / "file").free > 0


_SMI = r"""
case "$1" in
  *index*) printf '0, GPU-a, 580.65.06, 81559, 20000, NVIDIA H100 80GB, HBM3\n1, GPU-b, 580.65.06, [N/A], 5, L4\n';;
  *compute_cap*) CAPABILITIES;;
  *compute-apps*) printf 'GPU-a, 77, 61000, /usr/bin/python3, an argument\n';;
esac"""


def test_the_tables_of_the_driver_are_read(programs: Path, tmp_path: Path) -> None:
    program(programs, "nvidia-smi", _SMI.replace("CAPABILITIES", r"printf 'GPU-a, 9.0\nGPU-b, 8.9\n'"))
    read = graphics(bus=tmp_path)
    first, second = read.gpus
    assert (first.name, first.total, first.free) == ("NVIDIA H100 80GB, HBM3", 81559 * MIB, 20000 * MIB)
    assert (first.capability, second.capability) == ((9, 0), (8, 9))
    [process] = first.processes
    assert (process.pid, process.memory, process.name) == (77, 61000 * MIB, "/usr/bin/python3, an argument")
    assert (second.total, second.processes) == (0, ())
    assert (read.driver, read.on_bus) == ("580.65.06", 2)


def test_an_old_driver_that_knows_less_is_read_all_the_same(programs: Path, tmp_path: Path) -> None:
    refusal = "echo 'Field \"compute_cap\" is not a valid field to query.'; exit 2"
    program(programs, "nvidia-smi", _SMI.replace("CAPABILITIES", refusal))
    assert [gpu.capability for gpu in graphics(bus=tmp_path).gpus] == [(0, 0), (0, 0)]


def test_gpus_without_a_driver_are_on_the_bus(tmp_path: Path) -> None:
    for name, vendor, kind in (("a", "0x10de", "0x030200"), ("b", "0x10de", "0x040300"), ("c", "0x8086", "0x0300")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(f"{vendor}\n")
        (tmp_path / name / "class").write_text(f"{kind}\n")

    def absent(words: object) -> str:
        raise FileNotFoundError

    assert graphics(absent, tmp_path).on_bus == 1


def test_a_driver_that_fails_is_quoted(programs: Path, tmp_path: Path) -> None:
    program(programs, "nvidia-smi", "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    with pytest.raises(SmiError, match=r"nvidia-smi failed: Failed to initialize NVML"):
        ask_smi(["-L"])
    read = graphics(bus=tmp_path)
    assert read.complaint.startswith("nvidia-smi failed: Failed to initialize NVML")
    assert read.gpus == ()


def test_an_error_is_a_finding_and_the_others_are_made() -> None:
    def raises() -> object:
        raise ZeroDivisionError("of what\nmore")

    def refuses() -> object:
        raise UserError("model.path: cut off", advice="copy it again")

    checks = [Check(subject="s", name=one.__name__, look=one) for one in (raises, refuses)]  # type: ignore[arg-type]
    first, second, third = examine([*checks, Check(subject="s", name="last", look=lambda: fine("good"))])
    assert first.finding.found == "this could not be examined: ZeroDivisionError: of what"
    assert (second.finding.found, second.finding.advice) == ("model.path: cut off", "copy it again")
    assert [one.finding.verdict for one in (first, second, third)] == ["problem", "problem", "ok"]


def test_a_message_of_several_clauses_is_no_advice() -> None:
    assert failed(UserError("a is missing; b is cut off")) == problem("a is missing; b is cut off", "")


def test_an_error_between_checks_is_a_finding() -> None:
    def checks() -> Generator[Entry, None, None]:
        yield Check(subject="s", name="one", look=lambda: fine("good")).made()
        raise KeyError("gone")

    entries = list(guarded(checks()))
    assert [entry.finding.verdict for entry in entries] == ["ok", "problem"]
    assert "KeyError: 'gone'" in entries[1].finding.found


def test_what_later_checks_need_is_there_before_its_entry_is_read() -> None:
    entry, got = tried("s", "a number", lambda: 3, lambda number: fine(f"it is {number}"))
    assert (entry.finding, got) == (fine("it is 3"), 3)

    def raises() -> int:
        raise UserError("no number", advice="count again")

    entry, got = tried("s", "a number", raises, lambda number: fine(f"it is {number}"))
    assert (entry.finding, got) == (problem("no number", "count again"), None)


@pytest.mark.parametrize("part", ["files", "fit"])
def test_findings_do_not_depend_on_when_they_are_read(sd3_folder: Path, part: str) -> None:
    """All of them are asked for before the first is looked at, by one who takes them two at a time."""
    config = tiny_config(sd3_folder, "rewards.train=[{name: oracle}]", "model.max_sequence_length=14")
    entries = file_checks(config, "my.yaml") if part == "files" else fit_checks(config, GOOD, 0)
    names = [entry.name for pair in zip(entries, entries, strict=False) for entry in pair]
    assert names == {"files": ["policy", "reward", "prompts", "prompts"], "fit": ["plan", "memory"]}[part]


def test_a_machine_that_cannot_be_read_is_one_finding() -> None:
    def broken(disks: Mapping[str, Path]) -> Machine:
        raise PermissionError("/proc is closed")

    [entry] = examination(Request(collect=broken, step=False))
    assert entry.finding.found == "this could not be examined: PermissionError: /proc is closed"


def test_what_cannot_go_on_does_not_stop_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowrl.doctor.versions.graphics", lambda: 1 / 0)  # of the report that nodes are compared with
    request = Request(config=load(POCKET), hosts=("no-such-host.invalid",), collect=lambda disks: GOOD, step=False)
    entries = list(examination(request))
    subjects = list(dict.fromkeys(entry.subject for entry in entries))
    assert subjects == [
        *("Machine", "GPUs", "Python and packages", "Other nodes", "The examination itself"),
        *("Files of the run", "Does the run fit"),
    ]
    assert [entry.finding.found for entry in entries if entry.finding.verdict == "problem"] == [
        "this could not be examined: ZeroDivisionError: division by zero"
    ]


N1 = VersionReport(
    host="n1", versions=(("Python", "3.11.7"), ("torch", "2.13.0+cu130"), ("ray", "2.60.0")), gpus=("A",)
)
N2 = replace(N1, host="n2")
N3 = replace(N1, host="n3", versions=(("Python", "3.11.7"), ("torch", "2.12.1+cu126")))


def test_what_differs_is_said_with_the_nodes() -> None:
    assert differences([N1, N2]) == []
    assert differences([N1, N2, N3]) == [
        "torch is 2.13.0+cu130 on n1, n2 and 2.12.1+cu126 on n3",
        "ray is 2.60.0 on n1, n2 and not installed on n3",
    ]


def test_two_nodes_with_different_versions_are_a_problem() -> None:
    told = equal_versions([N1, N3])
    assert told.verdict == "problem"
    assert "torch is 2.13.0+cu130 on n1 and 2.12.1+cu126 on n3" in told.found
    assert "pip install --constraint constraints.txt --editable ." in told.advice
    assert equal_versions([N1, N2]).verdict == "ok"


def test_a_report_survives_being_sent() -> None:
    report = version_report(["/nowhere", str(ROOT)])
    assert VersionReport.from_json(report.to_json()) == report
    assert report.missing == ("/nowhere",)
    assert dict(report.versions)["flowrl"].endswith(")")
    for wrong in ("", "[]", '{"host": "n1"}'):
        with pytest.raises(ValueError):  # noqa: PT011
            VersionReport.from_json(wrong)


def test_a_node_without_the_files_is_told() -> None:
    told = node_state(replace(N2, missing=("/models/sd35",)))
    assert told.verdict == "problem"
    assert "not there: /models/sd35" in told.found
    assert "rsync -aR /models/sd35 n2:/" in told.advice


def test_a_node_answers_over_ssh_with_its_own_versions(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other" / "peft-0.1.2.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: peft\nVersion: 0.1.2\n")
    monkeypatch.chdir(ROOT)
    program(programs, "ssh", f'[ "$5" = n2 ] || exit 9\nexport PYTHONPATH={other.parent}\nexec bash -c "$6"')

    def follow() -> Generator[Entry, None, None]:
        reports = yield from node_checks(GOOD, ["n2"], ["/nowhere"])
        assert [report.missing for report in reports] == [(), ("/nowhere",)]

    entries = list(follow())
    assert [entry.name for entry in entries] == ["own name", "n2", "versions"]
    assert "not there: /nowhere" in entries[1].finding.found
    here = dict(version_report().versions)["peft"]
    host = socket.gethostname()
    assert entries[2].finding.found == f"peft is {here} on {host} and 0.1.2 on {host}"


@pytest.mark.parametrize(
    ("script", "found", "advice"),
    [
        ("echo 'me@n2: Permission denied (publickey).' >&2; exit 255", "refuses", "ssh-copy-id n2"),
        ("echo 'ssh: connect to host n2 port 22: No route' >&2; exit 255", "cannot be reached", "ssh n2 true"),
        (
            "echo 'No module named flowrl' >&2; exit 1",
            "flowrl does not answer there: No module",
            "install it on n2",
        ),
        ("echo hello", "which is no report", "install the same flowrl"),
    ],
)
def test_a_node_that_gives_no_report_says_why(programs: Path, script: str, found: str, advice: str) -> None:
    program(programs, "ssh", script)
    told = ask_by_ssh("n2", [])
    assert not isinstance(told, VersionReport)
    assert (told.verdict, found in told.found, advice in told.advice) == ("problem", True, True), told


def test_another_command_than_ssh_is_called_with_its_options(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(programs, "ssh", "echo 'the wrong one' >&2; exit 1")
    program(programs, "my-ssh", f'echo "$*" >{tmp_path}/told; echo "No route" >&2; exit 255')
    monkeypatch.setenv("FLOWRL_SSH", "my-ssh -p 2222")
    told = ask_by_ssh("n2", [])
    assert not isinstance(told, VersionReport)
    assert told.found == "cannot be reached: No route"
    assert told.advice.startswith("my-ssh -p 2222 n2 true    # ")
    assert (tmp_path / "told").read_text().startswith("-p 2222 -o BatchMode=yes -o ConnectTimeout=3 n2 cd ")
    monkeypatch.setenv("FLOWRL_SSH", "no-such-ssh -v")
    told = ask_by_ssh("n2", [])
    assert told == problem("there is no program no-such-ssh here", "put right or unset FLOWRL_SSH, which names it")


def test_nodes_whose_rewards_differ_are_told_apart(tmp_path: Path) -> None:
    other = tmp_path / "rewards"
    shutil.copytree(ROOT / "rewards", other, ignore=shutil.ignore_patterns("__pycache__"))
    ask = [sys.executable, "-m", "flowrl.doctor.versions"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}

    def digest() -> str:
        done = subprocess.run(ask, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        return dict(VersionReport.from_json(done.stdout).versions)["flowrl"]

    assert code_digest() in digest()
    (other / "__init__.py").write_text('"""Another."""\n')
    assert code_digest() not in digest()


def test_an_address_is_tried() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert reachable(f"127.0.0.1:{port}").verdict == "ok"
    refused = reachable(f"127.0.0.1:{port}")
    assert refused.found == f"127.0.0.1 is up, but nothing listens at port {port}"
    assert f"launch/ray/node.sh --head --port {port}    #" in refused.advice
    for unclear in ("node1", "auto"):  # a run joins neither
        told = reachable(unclear)
        assert (told.verdict, told.found) == ("problem", f"{unclear!r} is not HOST:PORT")
        assert "launch/ray/node.sh --head" in told.advice
    assert reachable("no-such-host.invalid:1").verdict == "problem"


def test_a_name_that_leads_home_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    assert own_name(GOOD).found == "n1 is 10.0.0.1"
    told = own_name(replace(GOOD, address="127.0.1.1"))
    assert (told.verdict, "export GLOO_SOCKET_IFNAME=eth0" in told.advice) == ("note", True)


def tiny_config(folder: Path, *more: str) -> RunConfig:
    sizes = ["rollout.prompts_per_step=4", "rollout.group_size=4", "rollout.samples_per_forward=4"]
    sizes += ["rollout.num_steps=3", "algorithm.trained_steps=all", f"model.image_size={tiny.IMAGE_SIZE}"]
    return load(POCKET, [f"model.path={folder}", "rewards.watch=[]", "placement.mode=fused", *sizes, *more])


def fit(config: RunConfig, *gpus: GpuState, machine_free: int = 500 * 10**9) -> dict[str, Entry]:
    machine = replace(with_gpus(GOOD, *gpus), memory_free=machine_free, memory_total=machine_free)
    return {entry.name: entry for entry in fit_checks(config, machine, len(gpus))}


def test_a_gpu_too_small_gets_proposals(sd3_folder: Path) -> None:
    config = tiny_config(sd3_folder, "placement.device=cuda", "placement.mode=local")
    small = GpuState(index=0, name="Small", total=10**6, free=10**6, capability=(9, 0))
    told = fit(config, small)["GPU memory"].finding
    assert told.verdict == "problem"
    assert "; the GPU is Small with 1.00 MB, of which 920 kB can be filled" in told.found
    assert told.advice == "use a GPU with 24 GB, such as RTX 4090 24 GB"
    large = replace(small, total=80 * 10**9, free=79 * 10**9)
    assert fit(config, large)["GPU memory"].finding.verdict == "ok"
    taken = fit(config, replace(large, free=10**6))["GPU memory"].finding
    assert (taken.verdict, taken.found.endswith("; but GPU 0 has 1.00 MB free")) == ("problem", True)


def test_too_few_gpus_are_counted(sd3_folder: Path) -> None:
    config = tiny_config(sd3_folder, "placement.device=cuda", "placement.num_learners=2", "placement.num_scorers=1")
    one = GpuState(index=0, name="Some", total=80 * 10**9, free=0, capability=(9, 0))
    told = {count: fit(config, *[one] * count)["GPUs"].finding for count in (0, 1, 2, 3)}
    assert told[0].found == "the run takes 3, here is none"
    assert told[1].found == "the run takes 3, here is 1"
    assert told[1].advice.splitlines()[1] == "or add placement.mode=local"
    assert told[2].found == "the run takes 3, here are 2"
    assert "or add placement.mode=fused placement.num_learners=1 placement.num_scorers=1" in told[2].advice
    assert told[3].found == "the run takes 3 of 3"


def test_a_plan_is_judged_on_the_smallest_gpu_and_on_as_many_as_there_are(sd3_folder: Path) -> None:
    config = tiny_config(sd3_folder, "placement.device=cuda")
    plan = run_plan(config)
    small = GpuState(index=1, name="Small", total=2 * 10**9, free=0, capability=(9, 0))
    machine = with_gpus(GOOD, replace(small, index=0, name="Large", total=80 * 10**9), small)
    for count, taken in ((1, 1), (0, None)):  # where none can be used, that is told elsewhere
        judged = verdict_here(config, plan, machine, count)
        assert judged is not None
        assert (judged.gpu.title, judged.gpu.memory, judged.num_gpus) == ("Small", 2 * 10**9, taken)
    assert verdict_here(config, plan, with_gpus(GOOD), 3) is None


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_memory_of_the_host_is_what_the_plan_says(sd3_folder: Path, device: str) -> None:
    config = tiny_config(sd3_folder, f"placement.device={device}")
    needed = sum(amount.size for amount in run_plan(config).host)
    told = {free: fit(config, machine_free=free)["memory"].finding for free in (needed, needed - 1)}
    assert [one.verdict for one in told.values()] == ["ok", "problem"]
    assert told[needed].found.startswith(f"{size(needed)} needed on the fullest node (")
    assert " for object store" in told[needed].found
    assert ("placement.mode=local" in told[needed - 1].advice) is (device == "cpu")
    taken = replace(GOOD, memory_total=needed, memory_free=needed - 1)
    assert host_memory(config, run_plan(config), taken).verdict == "note"


def test_on_the_cpu_the_host_has_all_that_the_actors_hold(sd3_folder: Path) -> None:
    split = ["placement.mode=split", "placement.num_rollouts=8", "placement.num_learners=2", "placement.num_scorers=1"]
    for placement, processes in ((["placement.mode=local"], "one process"), (split, "13 processes")):
        plan = run_plan(tiny_config(sd3_folder, *placement))
        amounts = {amount.name: amount.size for amount in plan.host}
        held = sum(kind.devices * kind.peak for kind in plan.devices)
        assert amounts["what the actors hold to compute on the CPU"] == held
        assert next(iter(amounts)) == processes
        assert ("object store" in amounts) is (placement == split)


def disk_told(config: RunConfig, *disks: Disk) -> Finding:
    entries = {entry.name: entry for entry in fit_checks(config, replace(GOOD, disks=disks), 0)}
    return entries["disk"].finding


def test_a_model_of_another_family_has_no_plan_which_is_no_problem(sd3_folder: Path) -> None:
    config = tiny_config(sd3_folder, "model.family=tests.unit.test_run_plan:Other")
    [entry] = fit_checks(config, GOOD, 0)
    assert (entry.name, entry.finding.verdict) == ("plan", "note")
    assert "of this model.family none is known" in entry.finding.found


def test_what_a_run_writes_is_weighed_disk_by_disk(sd3_folder: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    config = tiny_config(sd3_folder, f"run.dir={tmp_path / 'run'}", f"data.condition_cache={texts}")
    plan = run_plan(config)
    checkpoints = 4 * (config.checkpoint.keep + 1) * plan.policy.adapter_bytes  # one more than are kept
    [conditions] = (amount.size for amount in plan.disk if amount.folder == texts)
    runs = Disk(use="run.dir", path=tmp_path / "run", device=1, free=checkpoints + conditions, writable=True)
    there = replace(runs, use="data.condition_cache", path=texts)
    assert disk_told(config, runs, there).verdict == "ok"
    less = runs.free - 1
    together = disk_told(config, replace(runs, free=less), replace(there, free=less))
    assert together.verdict == "problem"
    assert together.found.startswith(f"{size(runs.free)} needed (")
    assert f", {size(conditions)} in {texts} for text conditions of up to " in together.found
    assert "add data.condition_cache=/a/disk/with/room/texts" in together.advice
    alone = disk_told(config, replace(runs, free=checkpoints - 1))
    assert "add run.dir=/a/disk/with/room/run; or keep fewer checkpoints: checkpoint.keep=1" in alone.advice
    apart = disk_told(config, replace(runs, free=less), replace(there, device=2, free=conditions))
    assert apart.verdict == "ok"
    assert disk_told(config, replace(runs, free=less), replace(there, device=2, free=conditions - 1)).verdict != "ok"


def test_weights_that_are_to_come_take_room(sd3_folder: Path, tmp_path: Path) -> None:
    seen: list[Mapping[str, Path]] = []

    def machine(disks: Mapping[str, Path]) -> Machine:
        seen.append(disks)
        return GOOD

    absent = tmp_path / "stable-diffusion-3.5-medium"
    for folder in (absent, sd3_folder):
        list(examination(Request(config=tiny_config(folder), collect=machine, step=False)))
    assert [disks.get("model.path") for disks in seen] == [absent, None]
    weights = Disk(use="model.path", path=absent, device=2, free=10**9, writable=True)
    told = disk_told(tiny_config(absent, "rewards.train=[{name: oracle}]"), GOOD.disks[0], weights)
    assert told.verdict == "problem"
    assert f" in {absent} for weights of the policy, to come" in told.found
    assert "add model.path=/a/disk/with/room/stable-diffusion-3.5-medium" in told.advice


def test_a_reward_that_is_to_come_takes_room(sd3_folder: Path, tmp_path: Path) -> None:
    absent = tmp_path / "HPSv3"
    config = tiny_config(sd3_folder, f"rewards.train=[{{name: hpsv3, options: {{path: {absent}}}}}]")
    seen: list[Mapping[str, Path]] = []

    def machine(disks: Mapping[str, Path]) -> Machine:
        seen.append(disks)
        return GOOD

    list(examination(Request(config=config, collect=machine, step=False)))
    assert seen[0]["rewards.train.0.options.path"] == absent
    weights = Disk(use="rewards.train.0.options.path", path=absent, device=2, free=10**9, writable=True)
    told = disk_told(config, GOOD.disks[0], weights)
    assert told.verdict == "problem"
    assert f" in {absent} for weights of hpsv3, to come" in told.found
    assert "add rewards.train.0.options.path=/a/disk/with/room/HPSv3" in told.advice


def test_a_model_of_unknown_size_is_one_problem() -> None:
    entries = fit(tiny_config(Path("/nowhere/unknown")))
    assert list(entries) == ["plan"]
    assert entries["plan"].finding.found.startswith("model.path: /nowhere/unknown")


def files(config: RunConfig) -> list[Entry]:
    return list(file_checks(config, "my.yaml"))


def test_gated_weights_that_are_missing_say_how_to_get_them(tmp_path: Path) -> None:
    path = tmp_path / "stable-diffusion-3.5-large"
    policy, reward, *_ = files(tiny_config(path, "rewards.train=[{name: dit_reward}]"))
    assert policy.finding.found == f"model.path: {path}: no such folder"
    steps = policy.finding.advice.splitlines()
    assert "https://huggingface.co/stabilityai/stable-diffusion-3.5-large" in steps[1]
    assert "hf auth login" in steps[2]
    assert steps[3] == "3. flowrl fetch my.yaml"
    assert reward.finding.verdict == "ok"


def test_a_truncated_shard_is_named(sd3_folder: Path, tmp_path: Path) -> None:
    from diffusers import SD3Transformer2DModel

    folder = tiny.write_folder(tmp_path / "sd3")
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    SD3Transformer2DModel.from_pretrained(sd3_folder / "transformer").save_pretrained(
        folder / "transformer", max_shard_size="60KB"
    )
    whole = tiny_config(folder, "rewards.train=[{name: oracle}]", "model.max_sequence_length=14")
    assert {entry.finding.verdict for entry in files(whole)} == {"ok"}
    shard = sorted((folder / "transformer").glob("*.safetensors"))[1]
    content = shard.read_bytes()
    shard.write_bytes(content[:-100])
    policy, reward, *_ = (entry.finding for entry in files(whole))
    assert reward.verdict == "ok"
    assert policy.verdict == "problem"
    assert f"{shard}: truncated or damaged: it holds {len(content) - 100} bytes of {len(content)}" in policy.found
    assert policy.advice == "copy it again"


def test_a_damaged_download_is_fetched_again(sd3_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stable-diffusion-3.5-medium"
    shutil.copytree(sd3_folder, folder)
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    policy, *_ = files(tiny_config(folder, "rewards.train=[{name: oracle}]"))
    assert f"{weights}: truncated or damaged" in policy.finding.found
    assert policy.finding.advice == "flowrl fetch my.yaml    # gets again what is missing or damaged"


def test_prompts_are_read(sd3_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("a\nb\n")

    def told(*more: str) -> list[Finding]:
        config = tiny_config(sd3_folder, "rewards.train=[{name: oracle}]", f"data.train_prompts={file}", *more)
        return [entry.finding for entry in files(config) if entry.name == "prompts"]

    train, held_out = told("rollout.prompts_per_step=2", "algorithm.inner_steps=1")
    assert train.found == f"2 prompts in {file}, data.train_prompts"
    assert held_out.found.endswith(" prompts in pocket, data.eval_prompts")
    too_few, none_held_out = told("eval.num_prompts=99999")
    assert too_few.found == "rollout.prompts_per_step must be at most the number of training prompts = 2, got 4"
    assert none_held_out.found.startswith("eval.num_prompts must be at most the number of held-out prompts = ")
    assert {one.advice for one in (too_few, none_held_out)} == {"add prompts or lower it"}
    file.unlink()
    assert [one.verdict for one in told()] == ["problem", "ok"]


ENTRIES = (
    Entry(subject="Machine", name="memory", finding=fine("8 GB")),
    Entry(subject="Machine", name="a name that is long", finding=note("slow", "buy\nanother")),
    Entry(subject="GPUs", name="GPU", finding=problem("gone " * 40, "look under the table")),
)


def test_lines_are_aligned_and_advice_stands_below() -> None:
    before = [None, *ENTRIES]
    text = [lines(entry, earlier) for entry, earlier in zip(ENTRIES, before, strict=False)]
    assert text[0] == "Machine\n  ok       memory           8 GB"
    assert text[1].splitlines() == [
        "  note     a name that is long",
        "                            slow",
        "                            -> buy",
        "                               another",
    ]
    third = text[2].splitlines()
    assert third[:2] == ["", "GPUs"]
    assert third[2].startswith("  PROBLEM  GPU              gone gone")
    assert max(map(len, third)) <= 120
    assert third[-1].endswith("-> look under the table")


def test_the_verdict_counts() -> None:
    assert verdict(ENTRIES, "my.yaml") == "1 problem: each arrow (->) says what to do. 1 note."
    ready = "No problem found. 1 note. This machine is ready for my.yaml: flowrl train my.yaml"
    assert verdict(ENTRIES[:2], "my.yaml") == ready
    told = json.loads(as_json(ENTRIES, None))
    assert (told["verdict"], told["config"], len(told["findings"])) == ("problem", None, 3)
    assert told["findings"][2]["advice"] == "look under the table"


def test_the_command_refuses_what_it_cannot_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "nowhere.yaml"]) == 2
    assert main(["doctor", "placement.mode=local"]) == 2
    assert "name the config before it" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["torch", "omegaconf", "diffusers"])
def test_a_broken_installation_is_examined_all_the_same(module: str) -> None:
    code = f"import sys; sys.modules[{module!r}] = None; from flowrl.cli import main; sys.exit(main(['doctor']))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert f"the libraries cannot be imported: ModuleNotFoundError: import of {module}" in " ".join(done.stdout.split())
    assert "pip install --force-reinstall" in done.stdout
