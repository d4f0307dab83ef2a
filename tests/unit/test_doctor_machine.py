"""What is found on machines of all kinds, each a snapshot: GPUs, drivers, torch builds, memory, /dev/shm, disks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from flowrl.config import RunConfig
from flowrl.doctor.finding import Entry, Finding, examine
from flowrl.doctor.gpu_checks import gpu_checks
from flowrl.doctor.host_checks import host_checks
from flowrl.doctor.machine import Disk, GpuProcess, GpuState, Graphics, Machine, Package, TorchBuild
from flowrl.doctor.purpose import Purpose, purpose_of
from flowrl.doctor.software_checks import software_checks

GB = 10**9
H100 = GpuState(index=0, name="H100", total=85 * GB, free=85 * GB, capability=(9, 0))
BUILD = TorchBuild(
    version="2.13.0+cu130",
    cuda="13.0",
    nccl="2.28.9",
    capabilities=("sm_80", "sm_90", "sm_100", "compute_120"),
    usable_gpus=2,
)
CPU_BUILD = TorchBuild(version="2.13.0+cpu")
GOOD = Machine(
    host="n1",
    address="10.0.0.1",
    python="3.12.4",
    python_wanted=">=3.11",
    executable="/venv/bin/python",
    packages=(Package(name="torch", wanted=">=2.6", version="2.13.0+cu130"),),
    torch=BUILD,
    graphics=Graphics(on_bus=2, driver="580.65.06", gpus=(H100, replace(H100, index=1))),
    cpus=64,
    memory_total=512 * GB,
    memory_free=500 * GB,
    shm_total=256 * GB,
    shm_free=256 * GB,
    open_files=1_048_576,
    disks=(Disk(use="run.dir", path=Path("runs/x"), device=1, free=900 * GB, writable=True),),
)
BARE = replace(GOOD, graphics=Graphics(), torch=CPU_BUILD)
ON_GPUS = Purpose(gpus=True, ray=True)


def found(machine: Machine, purpose: Purpose = ON_GPUS) -> dict[str, Finding]:
    """All findings by name, less what imports."""
    checks = [
        *host_checks(machine, purpose),
        *gpu_checks(machine, purpose),
        *(check for check in software_checks(machine) if check.name != "imports"),
    ]
    return {entry.name: entry.finding for entry in examine(checks)}


def faults(machine: Machine, purpose: Purpose = ON_GPUS) -> dict[str, Finding]:
    """The findings that are not ok."""
    return {name: finding for name, finding in found(machine, purpose).items() if finding.verdict != "ok"}


def with_gpus(machine: Machine, *gpus: GpuState, driver: str = "580.65.06") -> Machine:
    return replace(machine, graphics=Graphics(on_bus=len(gpus), driver=driver, gpus=gpus))


def test_a_good_machine_has_no_fault() -> None:
    assert faults(GOOD) == {}
    assert found(GOOD)["GPU 0"].found == "H100, 85.0 GB, compute capability 9.0, bfloat16"
    assert found(GOOD)["driver"].found == "580.65.06, new enough for CUDA 13.0 of torch"


def test_without_a_gpu_only_a_run_on_gpus_has_a_problem() -> None:
    cpu, cuda = RunConfig(), RunConfig()
    cuda.placement.device = "cuda"
    assert {name: one.verdict for name, one in faults(BARE, purpose_of(None, BARE)).items()} == {"GPU": "note"}
    assert faults(BARE, purpose_of(cpu, BARE))["GPU"].verdict == "note"
    problem = faults(BARE, purpose_of(cuda, BARE))["GPU"]
    assert (problem.verdict, problem.found) == ("problem", "this machine has no NVIDIA GPU")
    assert "docker run --gpus all" in problem.advice
    assert "flowrl train configs/pocket/ditreward.yaml" in problem.advice


def test_a_node_of_a_cluster_may_be_without_a_gpu() -> None:
    config = RunConfig()
    config.placement.device, config.placement.ray_address = "cuda", "10.0.0.1:6379"
    assert faults(BARE, purpose_of(config, BARE))["GPU"].verdict == "note"


@pytest.mark.parametrize(("driver", "wheels"), [("580.65.06", "cu130"), ("595.10", "cu130"), ("550.54", "cu126")])
def test_a_torch_for_the_cpu_beside_a_gpu_is_replaced_by_one_for_its_driver(driver: str, wheels: str) -> None:
    machine = with_gpus(replace(GOOD, torch=CPU_BUILD), H100, driver=driver)
    [(name, problem)] = faults(machine).items()
    assert (name, problem.verdict) == ("torch", "problem")
    assert problem.found == "torch 2.13.0+cpu is a build for the CPU and cannot use the GPU of this machine"
    assert problem.advice == (
        "/venv/bin/python -m pip uninstall -y torch && /venv/bin/python -m pip install torch "
        f"--index-url https://download.pytorch.org/whl/{wheels}"
    )
    assert faults(machine, Purpose(gpus=False, ray=True))["torch"].verdict == "note"


def test_a_driver_that_is_too_old_is_updated_or_gets_a_torch_of_its_own() -> None:
    blind = replace(BUILD, usable_gpus=0, capabilities=(), complaint="The NVIDIA driver on your system is too old")
    machine = with_gpus(replace(GOOD, torch=blind), H100, driver="535.104.05")
    problems = faults(machine)
    assert set(problems) == {"driver", "torch"}
    assert (
        "535.104.05 is too old for torch 2.13.0+cu130, whose CUDA 13.0 needs 580 or newer" in problems["driver"].found
    )
    assert "update the driver to 580" in problems["driver"].advice
    assert "whl/cu126" in problems["driver"].advice
    assert "can use 0 of 1 GPU(s): The NVIDIA driver on your system is too old" in problems["torch"].found
    assert problems["torch"].advice == "put the driver right first, as the line above says"


def test_a_driver_too_old_for_any_torch_must_be_updated() -> None:
    machine = with_gpus(replace(GOOD, torch=CPU_BUILD), H100, driver="470.82")
    assert faults(machine)["torch"].advice == "first update NVIDIA's driver to 525 or newer, better 580"


def test_a_gpu_without_a_driver_is_seen() -> None:
    machine = replace(GOOD, torch=CPU_BUILD, graphics=Graphics(on_bus=2))
    problem = faults(machine)["driver"]
    assert (problem.verdict, problem.found) == ("problem", "2 NVIDIA GPU(s) are built in, but no driver answers")
    assert "install NVIDIA's driver" in problem.advice
    assert "docker run --gpus all" in faults(replace(machine, in_container=True))["driver"].advice


def test_gpus_that_only_torch_sees_are_no_problem() -> None:
    [(name, told)] = faults(replace(GOOD, graphics=Graphics(), in_container=True)).items()
    assert (name, told.verdict) == ("driver", "note")
    assert told.found.startswith("torch can use 2 GPU(s), but there is no nvidia-smi")
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in told.advice


def test_a_gpu_of_unknown_capability_is_taken_as_it_is() -> None:
    unknown = replace(H100, capability=(0, 0))
    assert faults(with_gpus(replace(GOOD, torch=replace(BUILD, usable_gpus=1)), unknown)) == {}


def test_a_driver_that_fails_is_quoted() -> None:
    broken = Graphics(on_bus=1, complaint="nvidia-smi failed: Driver/library version mismatch")
    assert faults(replace(GOOD, torch=CPU_BUILD, graphics=broken))["driver"].found == broken.complaint


@pytest.mark.parametrize(
    ("capability", "has_code"), [((8, 0), True), ((8, 9), True), ((7, 5), False), ((12, 0), True), ((12, 1), True)]
)
def test_torch_must_have_code_for_the_gpu(capability: tuple[int, int], has_code: bool) -> None:
    gpu = replace(H100, name="some GPU", capability=capability)
    assert ("has no code for it" in found(with_gpus(GOOD, gpu))["GPU 0"].found) is not has_code


def test_a_gpu_newer_than_the_torch_gets_a_newer_torch() -> None:
    old = replace(BUILD, capabilities=("sm_80", "sm_90a"), usable_gpus=1)
    problem = faults(with_gpus(replace(GOOD, torch=old), replace(H100, capability=(12, 0))))["GPU 0"]
    assert problem.verdict == "problem"
    assert "(it has sm_80, sm_90a)" in problem.found
    assert "pip install torch --index-url" in problem.advice


def test_a_gpu_without_bfloat16_is_told() -> None:
    build = replace(BUILD, capabilities=("sm_75",), usable_gpus=1)
    told = faults(with_gpus(replace(GOOD, torch=build), replace(H100, name="T4", capability=(7, 5))))["GPU 0"]
    assert (told.verdict, told.advice) == ("note", "set model.dtype=float16")


def test_who_holds_memory_of_a_gpu_is_named() -> None:
    held = replace(H100, free=25 * GB, processes=(GpuProcess(pid=4321, name="python3", memory=60 * GB),))
    told = faults(with_gpus(GOOD, held))["GPU 0 in use"]
    assert "25.0 GB of 85.0 GB free; the rest is held by python3 (process 4321, 60.0 GB)" in told.found
    assert "kill 4321" in told.advice
    assert "CUDA_VISIBLE_DEVICES" not in told.advice
    several = with_gpus(GOOD, held, replace(H100, index=1), replace(H100, index=2))
    assert faults(several)["GPU 0 in use"].advice.endswith("export CUDA_VISIBLE_DEVICES=1,2")


def test_gpus_that_are_hidden_are_no_problem() -> None:
    machine = replace(GOOD, visible="1", torch=replace(BUILD, usable_gpus=1))
    [(name, told)] = faults(machine).items()
    assert (name, told.verdict) == ("torch", "note")
    assert told.found == "torch can use 1 of 2 GPU(s): CUDA_VISIBLE_DEVICES is '1'"
    assert told.advice.endswith("unset CUDA_VISIBLE_DEVICES")
    assert [gpu.index for gpu in machine.visible_gpus] == [1]
    assert len(replace(machine, visible="GPU-8a7b").visible_gpus) == 2


def test_several_gpus_need_nccl() -> None:
    assert faults(replace(GOOD, torch=replace(BUILD, nccl="")))["NCCL"].verdict == "problem"


def test_the_shm_of_docker_is_too_small_for_ray() -> None:
    small = replace(GOOD, shm_total=64 * 2**20, shm_free=64 * 2**20, in_container=True)
    [(name, problem)] = faults(small).items()
    assert (name, problem.verdict) == ("/dev/shm", "problem")
    assert problem.found.startswith("67.1 MB of 67.1 MB free; Ray and NCCL pass data")
    assert "docker run --shm-size=16g" in problem.advice
    outside = faults(replace(small, in_container=False))["/dev/shm"]
    assert "mount -o remount,size=16G /dev/shm" in outside.advice
    alone = faults(small, Purpose(gpus=False, ray=False))["/dev/shm"]
    assert (alone.verdict, alone.found.endswith("this run has one process and needs none")) == ("note", True)
    assert faults(replace(small, shm_total=None))["/dev/shm"].verdict == "problem"


def test_a_middling_shm_is_enough_for_the_cpu_and_little_for_gpus() -> None:
    middling = replace(GOOD, shm_total=2 * GB, shm_free=2 * GB)
    assert faults(middling)["/dev/shm"].verdict == "note"
    assert faults(middling, Purpose(gpus=False, ray=True)) == {}


def test_packages_out_of_range_and_missing_ones_are_installed_together() -> None:
    packages = (
        Package(name="torch", wanted=">=2.6", version="2.6.0+cpu"),
        Package(name="diffusers", wanted=">=0.42", version="0.30.1"),
        Package(name="peft", wanted=">=0.17", version=""),
    )
    problem = faults(replace(GOOD, packages=packages))["packages"]
    assert problem.found == "diffusers is 0.30.1, needed is >=0.42; peft is not installed"
    assert problem.advice == '/venv/bin/python -m pip install "diffusers>=0.42" "peft>=0.17"'


def test_an_old_python_is_told() -> None:
    problem = faults(replace(GOOD, python="3.10.12"))["Python"]
    assert problem.found == "3.10.12, where flowrl needs >=3.11"


def test_open_files_and_disks_have_limits() -> None:
    disks = (
        Disk(use="run.dir", path=Path("/full/runs"), device=1, free=GB // 2, writable=True),
        Disk(use="cache", path=Path("/locked"), device=2, free=GB * 9, writable=False),
    )
    problems = faults(replace(GOOD, open_files=512, disks=disks))
    assert {name: one.verdict for name, one in problems.items()} == dict.fromkeys(
        ["open files", "disk: run.dir", "disk: cache"], "problem"
    )
    assert "add run.dir=/a/disk/with/room/runs to the run" in problems["disk: run.dir"].advice
    assert "cannot be written to" in problems["disk: cache"].found
    assert faults(replace(GOOD, open_files=4096))["open files"].verdict == "note"


def test_little_memory_and_one_core_are_told() -> None:
    told = faults(replace(GOOD, memory_total=4 * GB, memory_free=3 * GB, cpus=1))
    assert {name: one.verdict for name, one in told.items()} == {"memory": "note", "cores": "note"}


def test_every_fault_says_what_to_do() -> None:
    bad = replace(
        with_gpus(GOOD, replace(H100, free=GB, capability=(7, 0)), driver="450.1"),
        python="3.9",
        shm_total=None,
        open_files=100,
        cpus=1,
        memory_free=GB,
    )
    entries = [Entry(subject="", name=name, finding=one) for name, one in faults(bad).items()]
    assert len(entries) > 6
    assert [entry.name for entry in entries if not entry.finding.advice] == []
