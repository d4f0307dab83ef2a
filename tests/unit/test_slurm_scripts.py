"""SLURM jobs: what a site may say, what a run takes, the scripts that are written, and how they are submitted."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flowrl.base.errors import UserError
from flowrl.cli.main import main
from flowrl.config import ConfigError, RunConfig, load
from flowrl.slurm.job import Job, array_of, job_for
from flowrl.slurm.scripts import Places, render
from flowrl.slurm.site import ContainerSection, Site, read_site, seconds_of

ROOT = Path(__file__).parents[2]
SITE = ROOT / "launch" / "slurm" / "site.yaml"
WRITTEN = Path(__file__).parent / "slurm_scripts"
REWARDS = ROOT / "experiments" / "matched" / "rewards.yaml"
PLACES = Places(
    checkout=Path("/project/flowrl"),
    manifest=Path("/project/flowrl/runs/rewards-sd35-large/manifest.jsonl"),
    programs=Path("/project/flowrl/.venv/bin"),
)
CLUSTER = Site(account="lab", partition="gpu", qos="long", gpu_type="h100", throttle=2, options=["--exclusive"])
IMAGE = dataclasses.replace(CLUSTER, setup=["module load apptainer"])
CASES = {
    "cpu": (Site(report_partition="short"), Job(indices=(0, 1, 2, 3), nodes=1, gpus_per_node=0, cpus_per_node=8)),
    "one-node": (
        dataclasses.replace(CLUSTER, constraint="h100", memory="900G", mail_user="me@lab.org"),
        Job(indices=(0, 1, 5), nodes=1, gpus_per_node=8, cpus_per_node=64),
    ),
    "two-nodes": (CLUSTER, Job(indices=tuple(range(6)), nodes=2, gpus_per_node=8, cpus_per_node=64)),
    "apptainer": (
        dataclasses.replace(
            IMAGE, container=ContainerSection(kind="apptainer", image="/images/flowrl.sif", mounts=["/data"])
        ),
        Job(indices=(0, 1), nodes=2, gpus_per_node=8, cpus_per_node=64),
    ),
    "pyxis": (
        dataclasses.replace(
            CLUSTER, container=ContainerSection(kind="pyxis", image="lab#flowrl:1", mounts=["/data:/data:ro"])
        ),
        Job(indices=(0, 1), nodes=1, gpus_per_node=8, cpus_per_node=64),
    ),
}


def text_of(name: str) -> str:
    """All scripts of a case, one after the other."""
    site, job = CASES[name]
    scripts = render(job, site, PLACES)
    parts = [("array.sbatch", scripts.array), ("report.sbatch", scripts.report), ("bin/flowrl", scripts.container)]
    return "\n".join(f"==> {file}\n{text}" for file, text in parts if text)


@pytest.mark.parametrize("name", list(CASES))
def test_scripts_are_as_they_were_reviewed(name: str) -> None:
    reviewed = WRITTEN / f"{name}.txt"
    if os.environ.get("FLOWRL_WRITE_SCRIPTS"):  # then look at the difference
        reviewed.write_text(text_of(name), encoding="utf-8")
    assert text_of(name) == reviewed.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", list(CASES))
def test_scripts_have_no_fault_that_shellcheck_sees(name: str, tmp_path: Path) -> None:
    site, job = CASES[name]
    scripts = render(job, site, PLACES)
    files = []
    for text in filter(None, (scripts.array, scripts.report, scripts.container)):
        files.append(tmp_path / f"{len(files)}.sh")
        files[-1].write_text(text, encoding="utf-8")
    shellcheck = Path(sys.executable).parent / "shellcheck"
    done = subprocess.run([shellcheck, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_file_of_the_site_says_every_key_with_its_default() -> None:
    assert read_site(SITE) == Site()
    text = SITE.read_text(encoding="utf-8")
    keys = re.findall(r"^ *(\w+):", text, flags=re.MULTILINE)
    inner = [one.name for one in dataclasses.fields(ContainerSection)]
    assert keys == [one.name for one in dataclasses.fields(Site)] + inner


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("partitions: gpu", r"unknown key 'partitions'; did you mean 'partition'\?"),
        ("time_limit: 24h", r"time_limit must read HH:MM:SS or D-HH:MM:SS, got '24h'"),
        ('{time_limit: "00:10:00", grace_s: 500}', r"grace_s = 500 leaves no time for training within time_limit"),
        ("partition: gpu low", r"partition must be one word without quotes, \$ and #, got 'gpu low'"),
        ("account: $LAB", r"account must be one word"),
        ("options: [exclusive]", r"options: 'exclusive' must begin with --"),
        ("container: {kind: apptainer}", r"container.kind apptainer with container.image ''"),
        ("container: {image: a.sif}", r"an image needs a kind"),
        ("container: {kind: pyxis, image: a, mounts: ['/a,/b']}", r"'/a,/b' must have no spaces, commas or quotes"),
        ("gpus_per_node: 0", r"gpus_per_node must be at least 1, got 0"),
        ("throttle: -1", r"throttle must be at least 0, got -1"),
    ],
)
def test_a_wrong_setting_of_the_site_is_named(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=says):
        read_site(path)


def test_time_limits_are_read_as_slurm_reads_them() -> None:
    assert seconds_of("00:02:00") == 120
    assert seconds_of("36:00:01") == 36 * 3600 + 1
    assert seconds_of("2-01:00:00") == 49 * 3600


def test_an_array_names_what_is_left() -> None:
    assert array_of((0, 1, 2, 3), 2) == "0-3%2"
    assert array_of((0, 2, 3, 7), 0) == "0,2-3,7"
    assert array_of((4,), 1) == "4%1"


def config_with(**placement: object) -> RunConfig:
    """A run that is placed so."""
    config = RunConfig()
    for key, value in placement.items():
        assert hasattr(config.placement, key)
        setattr(config.placement, key, value)
    return config


@pytest.mark.parametrize(
    ("profile", "nodes", "gpus"),
    [("pocket", 1, 0), ("sd35-large-1gpu", 1, 1), ("sd35-large-8gpu", 1, 8), ("sd35-large", 2, 8)],
)
def test_nodes_and_gpus_follow_from_the_placement(profile: str, nodes: int, gpus: int) -> None:
    configs = [load(ROOT / "configs" / profile / f"{name}.yaml") for name in ("ditreward", "hpsv3")]
    job = job_for(configs, [0, 1], Site())
    assert (job.nodes, job.gpus_per_node, job.indices) == (nodes, gpus, (0, 1))


def test_a_job_has_room_for_its_largest_run_and_spreads_it_evenly() -> None:
    small = config_with(mode="split", device="cuda", num_rollouts=1, num_scorers=1, num_learners=1)
    large = config_with(mode="split", device="cuda", num_rollouts=6, num_scorers=3, num_learners=3)
    site = Site(gpus_per_node=8, cpus_per_gpu=4)
    assert job_for([small, large], [0, 1], site) == Job(indices=(0, 1), nodes=2, gpus_per_node=6, cpus_per_node=24)
    assert job_for([small], [0], site) == Job(indices=(0,), nodes=1, gpus_per_node=3, cpus_per_node=12)
    local = config_with(mode="local", threads=3)
    assert job_for([local], [0], site) == Job(indices=(0,), nodes=1, gpus_per_node=0, cpus_per_node=3)


SBATCH = """#!/bin/sh
echo "$*" >>{log}
case $* in *array.sbatch) echo '17;cluster' ;; *) echo 18 ;; esac
"""


@pytest.fixture
def login_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a stand-in for sbatch on the PATH, which keeps its calls in `calls`."""
    log, sbatch = tmp_path / "calls", tmp_path / "sbatch"
    sbatch.write_text(SBATCH.format(log=log), encoding="utf-8")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(ROOT)
    return tmp_path


def test_a_dry_run_prints_what_would_run_and_submits_nothing(
    login_node: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = login_node / "out"
    assert main(["matrix", str(REWARDS), "--slurm", "--dry-run", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert not (login_node / "calls").exists()
    assert not (out / "slurm").exists()
    assert f"#SBATCH --chdir={ROOT}\n" in said
    assert "#SBATCH --array=0-5\n" in said
    array, report = out / "slurm" / "array.sbatch", out / "slurm" / "report.sbatch"
    assert said.endswith(
        f"$ sbatch --parsable {array}\n$ sbatch --parsable --dependency=afterany:ARRAY_JOB_ID {report}\n"
    )
    assert main(["matrix", str(REWARDS), "--slurm", "--out", str(out)]) == 0
    calls = (login_node / "calls").read_text(encoding="utf-8")
    assert calls == f"--parsable {array}\n--parsable --dependency=afterany:17 {report}\n"
    for path in (array, report):
        assert f"==> {path}\n{path.read_text(encoding='utf-8')}\n" in said
    assert "job 17 trains, job 18 writes the report" in capsys.readouterr().out


def test_a_refusal_of_sbatch_is_told(login_node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (login_node / "sbatch").write_text("#!/bin/sh\necho 'invalid account' >&2\nexit 1\n", encoding="utf-8")
    assert main(["matrix", str(REWARDS), "--slurm", "--out", str(login_node / "out")]) == 2
    assert "invalid account; account, partition and limits are in the site file" in capsys.readouterr().err


def test_an_option_that_is_given_twice_is_refused(login_node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site = login_node / "site.yaml"
    site.write_text("options: [--nodes=4]", encoding="utf-8")
    command = ["matrix", str(REWARDS), "--slurm", "--site", str(site), "--out", str(login_node / "out")]
    assert main(command) == 2
    assert "--nodes is given 2 times, and the last counts" in capsys.readouterr().err
    assert not (login_node / "calls").exists()


def test_a_folder_that_is_no_checkout_cannot_submit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flowrl.slurm.submission import prepare

    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^launch/slurm/element.sh: not here; call this in the folder of flowrl's"):
        prepare(tmp_path / "manifest.jsonl", Site())
