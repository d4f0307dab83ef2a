"""The scripts of an experiment: the array job, the job that writes the report, and the way into a container."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flowrl.slurm.job import Job, array_of
from flowrl.slurm.site import ContainerSection, Site

IN_CONTAINER = ("flowrl", "python", "ray")  # the programs that are those of the image, by scripts of these names
_REPORT_LIMIT = "01:00:00"


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where an experiment's jobs find things; all paths are absolute, and on a disk that all nodes share."""

    checkout: Path  # the folder in which commands are called
    manifest: Path
    programs: Path  # the folder with the `flowrl` that is called, where there is no container

    @property
    def folder(self) -> Path:
        """Of scripts, output and what is kept between two attempts."""
        return self.manifest.parent / "slurm"

    @property
    def container(self) -> Path:
        """Of the scripts that go into the container."""
        return self.folder / "bin"


@dataclass(frozen=True, kw_only=True)
class Scripts:
    """What is written and handed to sbatch."""

    array: str
    report: str
    container: str  # empty: there is none


def render(job: Job, site: Site, places: Places) -> Scripts:
    """The scripts as text."""
    return Scripts(array=_array(job, site, places), report=_report(site, places), container=_way_in(site, places))


def _array(job: Job, site: Site, places: Places) -> str:
    gpu_type = f"{site.gpu_type}:" if site.gpu_type else ""
    options = [
        f"--job-name={places.manifest.parent.name}",
        f"--array={array_of(job.indices, site.throttle)}",
        f"--output={places.folder}/%A_%a.out",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR1@{site.grace_s}",
        f"--time={site.time_limit}",
        f"--nodes={job.nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={job.cpus_per_node}",
        *([f"--gpus-per-node={gpu_type}{job.gpus_per_node}"] if job.gpus_per_node else []),
        *_given(site, partition=site.partition),
        *([f"--mail-user={site.mail_user}", "--mail-type=FAIL"] if site.mail_user else []),
    ]
    arguments = ["--grace", str(site.grace_s), "--max-restarts", str(site.max_restarts)]
    if site.container.kind == "pyxis":
        arguments.append("--by-srun")
    return _script(
        f"The runs of {places.manifest}, an element each.",
        options,
        site,
        places,
        f"exec launch/slurm/element.sh {' '.join(arguments)} {places.manifest}",
    )


def _report(site: Site, places: Places) -> str:
    options = [
        f"--job-name={places.manifest.parent.name}-report",
        f"--output={places.folder}/report-%j.out",
        f"--time={_REPORT_LIMIT}",
        "--nodes=1",
        "--ntasks=1",
        *_given(site, partition=site.report_partition or site.partition, for_gpus=False),
        *([f"--mail-user={site.mail_user}", "--mail-type=END,FAIL"] if site.mail_user else []),
    ]
    title = f"The report on the runs of {places.manifest}, of what is there."
    return _script(title, options, site, places, f"exec flowrl report {places.manifest}")


def _given(site: Site, *, partition: str, for_gpus: bool = True) -> list[str]:
    """The options that the site sets; some are for the nodes that train alone."""
    pairs = {"account": site.account, "partition": partition, "qos": site.qos}
    if for_gpus:
        pairs |= {"constraint": site.constraint, "mem": site.memory}
    return [f"--{name}={value}" for name, value in pairs.items() if value] + (site.options if for_gpus else [])


def _script(title: str, options: list[str], site: Site, places: Places, command: str) -> str:
    programs = places.programs if site.container.kind == "none" else places.container
    lines = [
        "#!/usr/bin/env bash",
        f"# {title}",
        f"#SBATCH --chdir={places.checkout}",
        *(f"#SBATCH {option}" for option in options),
        "",
        "set -eo pipefail",
        *site.setup,
        f'export PATH="{programs}:$PATH"',
        command,
    ]
    return "\n".join(lines) + "\n"


def _way_in(site: Site, places: Places) -> str:
    """The script that runs the program of its own name in the container."""
    container = site.container
    if container.kind == "none":
        return ""
    folders = [places.checkout, places.manifest.parent]
    if places.manifest.is_relative_to(places.checkout):
        folders.pop()
    mounts = [*map(str, folders), "/tmp", "/dev/shm", *container.mounts]
    call = _apptainer(container, mounts, places) if container.kind == "apptainer" else _pyxis(container, mounts, places)
    lines = ["#!/usr/bin/env bash", "# Runs the program of this name in the container.", " \\\n    ".join(call)]
    return "\n".join(lines) + "\n"


def _apptainer(container: ContainerSection, mounts: list[str], places: Places) -> list[str]:
    """Never with --cleanenv, which would drop what SLURM and Ray say."""
    return [
        "exec apptainer exec --nv",
        f"--bind {','.join(mounts)}",
        f"--pwd {places.checkout}",
        container.image,
        '"${0##*/}" "$@"',
    ]


def _pyxis(container: ContainerSection, mounts: list[str], places: Places) -> list[str]:
    """A step on this node. What srun passes on goes to every process of the step, of which a driver has but one."""
    both = ",".join(mount if ":" in mount else f"{mount}:{mount}" for mount in mounts)
    return [
        'exec srun --nodes=1 --ntasks=1 --overlap --nodelist="$SLURMD_NODENAME"',
        f"--container-image={container.image}",
        f"--container-mounts={both}",
        f"--container-workdir={places.checkout}",
        '"${0##*/}" "$@"',
    ]
