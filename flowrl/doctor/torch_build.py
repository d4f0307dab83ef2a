"""What the installed torch can do here, found out without making anything on a GPU."""

from __future__ import annotations

import warnings
from importlib import metadata

from flowrl.doctor.machine import TorchBuild


def torch_build() -> TorchBuild | None:
    """The build of torch and what it finds; None where it is not installed."""
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a library of CUDA that is not there
        return TorchBuild(version=version, complaint=f"import torch fails: {error}")
    if torch.version.cuda is None:
        return TorchBuild(version=version)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    complaints = [" ".join(str(warning.message).split()) for warning in said]
    return TorchBuild(
        version=version,
        cuda=torch.version.cuda,
        nccl=_nccl(),
        capabilities=tuple(torch.cuda.get_arch_list()) if usable else (),
        usable_gpus=usable,
        complaint=complaints[0] if complaints and not usable else "",
    )


def _nccl() -> str:
    import torch

    if not torch.distributed.is_available() or not torch.distributed.is_nccl_available():
        return ""
    version = torch.cuda.nccl.version()
    return ".".join(map(str, version)) if isinstance(version, tuple) else str(version)
