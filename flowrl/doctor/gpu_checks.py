"""Checks of GPUs, their driver, and whether the installed torch fits them."""

from __future__ import annotations

from functools import partial

from flowrl.base.amounts import GB, size
from flowrl.doctor.finding import Check, Finding, fine, note
from flowrl.doctor.machine import GpuState, Machine
from flowrl.doctor.purpose import Purpose
from flowrl.doctor.software_checks import pip

SUBJECT = "GPUs"
# The oldest driver of each major version of CUDA: NVIDIA, CUDA Compatibility, table 1 (minor version compatibility).
_OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
# Where the wheels of torch for the newest driver that is at least so old are.
_WHEELS = {580: "cu130", 525: "cu126"}
_HELD = GB  # by others, on one GPU; a desktop takes less
_FIRST_BFLOAT16 = (8, 0)  # Ampere


def gpu_checks(machine: Machine, purpose: Purpose) -> list[Check]:
    """All of them; one line for a machine without a GPU."""
    graphics = machine.graphics
    usable = machine.torch.usable_gpus if machine.torch is not None else 0
    if not graphics.on_bus and not graphics.gpus and not graphics.complaint and not usable:
        return [Check(subject=SUBJECT, name="GPU", look=partial(no_gpu, purpose))]
    checks = [
        Check(subject=SUBJECT, name="driver", look=partial(driver, machine, purpose)),
        Check(subject=SUBJECT, name="torch", look=partial(torch_fits, machine, purpose)),
    ]
    for gpu in graphics.gpus:
        name = f"GPU {gpu.index}"
        checks += [
            Check(subject=SUBJECT, name=name, look=partial(gpu_kind, gpu, machine, purpose)),
            Check(subject=SUBJECT, name=f"{name} in use", look=partial(gpu_use, gpu, machine)),
        ]
    if machine.torch is not None and machine.torch.cuda:
        checks.append(Check(subject=SUBJECT, name="NCCL", look=partial(nccl, machine, purpose)))
    return checks


def no_gpu(purpose: Purpose) -> Finding:
    """There is none; whether that matters depends on the run."""
    found = "this machine has no NVIDIA GPU"
    if not purpose.gpus:
        return note(found, "the pocket runs need none; SD3.5 does: start it on a machine with GPUs")
    return purpose.of_gpus(
        found,
        "start this run on a machine with GPUs (flowrl plan CONFIG says how large); in a container, start it with "
        "docker run --gpus all ...\nto try the system here: flowrl train configs/pocket/ditreward.yaml",
    )


def driver(machine: Machine, purpose: Purpose) -> Finding:
    """The driver answers, and is new enough for the CUDA of the installed torch."""
    graphics = machine.graphics
    if not graphics.driver and machine.torch is not None and machine.torch.usable_gpus:
        return note(
            f"torch can use {machine.torch.usable_gpus} GPU(s), but {graphics.complaint or 'there is no nvidia-smi'}: "
            "their memory and who uses it cannot be examined",
            "docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility ..." if machine.in_container else "",
        )
    if not graphics.driver:
        found = graphics.complaint or f"{graphics.on_bus} NVIDIA GPU(s) are built in, but no driver answers"
        inside = "start the container with: docker run --gpus all ..." if machine.in_container else ""
        return purpose.of_gpus(found, inside or "install NVIDIA's driver (Ubuntu: sudo ubuntu-drivers install), reboot")
    build = machine.torch
    if build is None or not build.cuda:
        return fine(graphics.driver)
    oldest = _OLDEST_DRIVER.get(_major(build.cuda), 0)
    # With NVIDIA's forward compatibility package an older driver does, which torch shows by using the GPUs.
    if _major(graphics.driver) >= oldest or build.usable_gpus:
        return fine(f"{graphics.driver}, new enough for CUDA {build.cuda} of torch")
    return purpose.of_gpus(
        f"{graphics.driver} is too old for torch {build.version}, whose CUDA {build.cuda} needs {oldest} or newer",
        f"either update the driver to {oldest} or newer,\nor install a torch for this driver: {_right_torch(machine)}",
    )


def torch_fits(machine: Machine, purpose: Purpose) -> Finding:
    """The installed torch is one for GPUs, and finds those of the machine."""
    build, graphics = machine.torch, machine.graphics
    gpus = graphics.gpus
    if build is None:
        return purpose.of_gpus("torch is not installed", _right_torch(machine))
    if build.complaint and not build.cuda:
        return purpose.of_gpus(build.complaint, _right_torch(machine))
    if not build.cuda:
        return purpose.of_gpus(
            f"torch {build.version} is a build for the CPU and cannot use the GPU of this machine",
            _right_torch(machine),
        )
    if build.usable_gpus and build.usable_gpus >= len(gpus):
        return fine(f"{build.version}, CUDA {build.cuda}, can use {build.usable_gpus} GPU(s)")
    if machine.visible is not None and (build.usable_gpus or not machine.visible.strip()):
        return note(
            f"torch can use {build.usable_gpus} of {len(gpus)} GPU(s): CUDA_VISIBLE_DEVICES is {machine.visible!r}",
            "to use all of them: unset CUDA_VISIBLE_DEVICES",
        )
    said = f": {build.complaint}" if build.complaint else ""
    advice = (
        "nvidia-smi    # must list the GPUs; where it does not, restart the machine, or the container with --gpus all"
    )
    if not graphics.driver or _driver_is_old(machine):
        advice = "put the driver right first, as the line above says"
    return purpose.of_gpus(f"torch {build.version} can use {build.usable_gpus} of {len(gpus)} GPU(s){said}", advice)


def gpu_kind(gpu: GpuState, machine: Machine, purpose: Purpose) -> Finding:
    """What the GPU is, and that torch has code for it and it computes in bfloat16."""
    major, minor = gpu.capability
    if not major:
        return fine(f"{gpu.name}, {size(gpu.total)}; this driver does not tell its compute capability")
    found = f"{gpu.name}, {size(gpu.total)}, compute capability {major}.{minor}"
    build = machine.torch
    if build is not None and build.capabilities and not _has_code_for(gpu.capability, build.capabilities):
        return purpose.of_gpus(
            f"{found}: torch {build.version} has no code for it (it has {', '.join(build.capabilities)})",
            _right_torch(machine),
        )
    if gpu.capability < _FIRST_BFLOAT16:
        return note(f"{found}; computes in bfloat16 slowly or not at all", "set model.dtype=float16")
    return fine(f"{found}, bfloat16")


def gpu_use(gpu: GpuState, machine: Machine) -> Finding:
    """No one else holds memory of it."""
    others = sum(process.memory for process in gpu.processes)
    if max(others, gpu.total - gpu.free) <= _HELD:
        return fine(f"{size(gpu.free)} free")
    who = ", ".join(f"{one.name} (process {one.pid}, {size(one.memory)})" for one in gpu.processes)
    found = f"{size(gpu.free)} of {size(gpu.total)} free; the rest is held by {who or 'processes that are not shown'}"
    pids = " ".join(str(one.pid) for one in gpu.processes)
    advice = f"if these are yours and done, end them: kill {pids}" if pids else "nvidia-smi    # shows who uses it"
    rest = ",".join(str(one.index) for one in machine.graphics.gpus if one.index != gpu.index)
    return note(found, f"{advice}\nor do without this GPU: export CUDA_VISIBLE_DEVICES={rest}" if rest else advice)


def nccl(machine: Machine, purpose: Purpose) -> Finding:
    """Processes on GPUs talk to each other through NCCL, which comes with torch."""
    build = machine.torch
    if build is not None and build.nccl:
        return fine(build.nccl)
    return purpose.of_gpus("the installed torch is without NCCL, so GPUs cannot work together", _right_torch(machine))


def _right_torch(machine: Machine) -> str:
    """The command that installs a torch for the driver of the machine."""
    version = _major(machine.graphics.driver)
    wheels = next((name for oldest, name in _WHEELS.items() if version >= oldest), None)
    if wheels is None:
        return f"first update NVIDIA's driver to {min(_WHEELS)} or newer, better {max(_WHEELS)}"
    call = pip(machine)
    return f"{call} uninstall -y torch && {call} install torch --index-url https://download.pytorch.org/whl/{wheels}"


def _driver_is_old(machine: Machine) -> bool:
    build = machine.torch
    return build is not None and _major(machine.graphics.driver) < _OLDEST_DRIVER.get(_major(build.cuda), 0)


def _major(version: str) -> int:
    text = version.partition(".")[0]
    return int(text) if text.isdigit() else 0


def _has_code_for(capability: tuple[int, int], names: tuple[str, ...]) -> bool:
    """Whether code of one of the names runs on a GPU: sm_80 on every 8.x from it on, compute_80 on all later ones too.

    With an "a" at its end it runs on just that kind, with an "f" on its family alone (CUDA, nvcc's architectures).
    """
    for name in names:
        kind, _, digits = name.partition("_")
        number = digits.rstrip("af")
        if not number.isdigit():
            continue
        built = (int(number[:-1]), int(number[-1]))
        later = kind == "compute" and digits == number
        if built == capability or (
            not digits.endswith("a") and built < capability and (later or built[0] == capability[0])
        ):
            return True
    return False
