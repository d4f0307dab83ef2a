"""Experiments on a real SLURM: two nodes on this machine. Arrays, limits, preemption, restarts, reports and the end."""

from __future__ import annotations

import dataclasses
import getpass
import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flowrl.base import checkpoint
from flowrl.cli import main
from flowrl.config import RewardSpec
from flowrl.matrix.experiment import ArmSection, Experiment, Run
from flowrl.matrix.folder import write_experiment
from flowrl.matrix.manifest import MANIFEST, Element, write_manifest
from flowrl.slurm.scripts import render
from flowrl.slurm.site import Site
from flowrl.slurm.submission import prepare, submit
from tests.cheap_rewards import BRIGHT, LATENT, LATENT_KEY
from tests.integration.runs import TinyRun, TinyRuns, same, unequal
from tests.integration.test_ray_runs import processes
from tests.paced_reward import PACED
from tests.slurm_cluster import CPUS, Cluster, cluster, missing_programs, until

ROOT = Path(__file__).parents[2]
ON_ACTORS = {"mode": "split", "num_rollouts": 1, "num_scorers": 1, "num_learners": 1, "timeout_s": 240.0}
ROLES = ("num_rollouts", "num_scorers", "num_learners")
SETTINGS = {f"placement__{key}": value for key, value in ON_ACTORS.items()}
SITE = Site(time_limit="00:10:00", grace_s=60)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster."""
    if missing := missing_programs():
        pytest.skip(f"SLURM is not installed: there is no {', '.join(missing)}")
    with cluster(tmp_path_factory.mktemp("slurm")) as made:
        yield made


@dataclass(kw_only=True)
class Lab:
    """Makes experiments and submits them; whatever their jobs start bears a mark."""

    slurm: Cluster
    runs: TinyRuns
    folder: Path
    marker: str

    def element(self, arm: str, seed: int, *, held: bool = False, **changes: Any) -> Run:
        """A run; a held one is slow while the file `hold` is there."""
        folder = self.folder / f"{arm}-{seed}"
        options = {"hold": str(self.hold)} if held else {}
        trained, watched = RewardSpec(name=PACED, label=LATENT_KEY, options=options), RewardSpec(name=BRIGHT)
        if arm == "bright":
            trained, watched = watched, RewardSpec(name=LATENT)
        config = self.runs.config(folder, run__seed=seed, rewards__train=[trained], rewards__watch=[watched], **changes)
        return Run(arm=arm, seed=seed, config=config)

    def submit(self, runs: list[Run], site: Site, *, nodes: int = 1) -> tuple[str, str, list[Element]]:
        """The ids of the array and of the report, and the elements."""
        self.hold.touch()
        elements = write_manifest(runs, self.folder)
        arms, seeds = {run.arm: ArmSection() for run in runs}, sorted({run.seed for run in runs})
        experiment = Experiment(question="Which?", base="", arms=arms, differ=["rewards"], seeds=seeds)
        write_experiment(experiment, self.folder)
        prepared = prepare(self.folder / MANIFEST, site)
        job = dataclasses.replace(prepared.job, nodes=nodes)
        scripts = render(job, site, prepared.places)
        array, report = submit(dataclasses.replace(prepared, job=job, scripts=scripts))
        return array, report, elements

    @property
    def hold(self) -> Path:
        """Runs that are held are slow while it is there."""
        return self.folder / "hold"

    def said(self, element: str) -> str:
        """The output of all attempts of an element."""
        path = self.folder / "slurm" / f"{element}.out"
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    def steps(self, element: Element) -> int:
        """How many steps there are figures of."""
        path = element.dir / "metrics.jsonl"
        return len(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else 0

    def ends(self, job: str, state: str, *, seconds: float) -> None:
        """Wait until a job has ended, which must be in a state."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        until(lambda: self.slurm.state(job) in over, seconds=seconds, what=lambda: f"job {job}: {self.said(job)}")
        assert self.slurm.state(job) == state, self.said(job)


@pytest.fixture
def lab(slurm: Cluster, runs: TinyRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """The experiment of a test; at its end there is nothing left of its jobs."""
    marker = uuid.uuid4().hex
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    monkeypatch.setenv("FLOWRL_TEST", marker)
    monkeypatch.delenv("RAY_AUTH_MODE")  # as in a job, where flowrl makes a token for Ray
    yield Lab(slurm=slurm, runs=runs, folder=tmp_path, marker=marker)
    slurm.run("scancel", "--user", getpass.getuser())
    until(lambda: processes(marker) == {}, seconds=30, what=lambda: f"the end of {processes(marker)}")


def test_an_array_goes_on_after_its_time_limit_with_the_same_numbers_and_a_report_follows(lab: Lab) -> None:
    long = {"run__steps": 70, "eval__every": 35, "checkpoint__every": 1000}
    elements = [lab.element(arm, seed, held=seed == 0, **long) for seed in (0, 1) for arm in ("latent", "bright")]
    site = dataclasses.replace(SITE, time_limit="00:02:00", throttle=2)
    array, report, [first, *_] = lab.submit(elements, site)
    at_once = set()

    def restarted() -> bool:
        at_once.add(len(lab.slurm.run("squeue", "-hr", "-t", "RUNNING", "-j", array).splitlines()))
        return lab.slurm.job(f"{array}_0")["Restarts"] == "1"

    until(restarted, seconds=110, what=lambda: f"the time limit: {lab.said(f'{array}_0')}")
    assert max(at_once) == 2
    assert lab.slurm.job(report)["JobState"] == "PENDING"
    newest, _ = checkpoint.newest(first.dir / "checkpoints")
    assert newest is not None
    stopped = checkpoint.step_of(newest)
    assert 0 < stopped < 70
    lab.hold.unlink()
    for index in range(4):
        lab.ends(f"{array}_{index}", "COMPLETED", seconds=400)
    lab.ends(report, "COMPLETED", seconds=120)
    said = lab.said(f"{array}_0")
    assert re.search(r"^latent-0: attempt 1, after step 0$", said, flags=re.MULTILINE)
    assert f"SIGUSR1: stopped after step {stopped}" in said
    assert re.search(rf"^latent-0: attempt 2, after step {stopped}$", said, flags=re.MULTILINE)
    undisturbed = lab.runs.run(rewards__train=[RewardSpec(name=LATENT)], **long)
    resumed = TinyRun(folder=first.dir)
    assert same(resumed.adapter, undisturbed.adapter)
    assert unequal(resumed, undisturbed) == []
    page = (lab.folder / "report.html").read_text(encoding="utf-8")
    assert "<h1>Which?</h1>" in page


@pytest.mark.ray
def test_the_pocket_experiment_is_submitted_by_its_command_and_ends_in_a_verdict(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    site, experiment = lab.folder / "site.yaml", lab.folder / "pocket.yaml"
    site.write_text("time_limit: '00:10:00'\ngrace_s: 60\n", encoding="utf-8")
    text = (ROOT / "experiments" / "matched" / "rewards.yaml").read_text(encoding="utf-8")
    experiment.write_text(text.replace("seeds: [0, 1, 2]", "seeds: [7]"), encoding="utf-8")
    few = ["run.steps=1", "rollout.prompts_per_step=2", "rollout.group_size=4", "eval.num_prompts=8"]
    few += ["eval.samples_per_prompt=2", "eval.grid_prompts=1", *(f"placement.{key}={ON_ACTORS[key]}" for key in ROLES)]
    out = lab.folder / "out"
    assert main(["matrix", str(experiment), "--slurm", "--site", str(site), "--out", str(out), *few]) == 0
    ids = re.search(r"submitted: job (\d+) trains, job (\d+) writes the report", capsys.readouterr().out)
    assert ids is not None
    array, report = ids.groups()
    for index in range(2):
        lab.ends(f"{array}_{index}", "COMPLETED", seconds=400)
    lab.ends(report, "COMPLETED", seconds=120)
    result = json.loads((out / "report" / "result.json").read_text(encoding="utf-8"))
    assert (result["decided_by"], result["seeds"], result["problems"]) == ("oracle", [7], [])
    assert result["arms"] == {"ditreward": ["dit_reward"], "hpsv3": ["hpsv3"]}
    assert "after 1 step" in result["verdict"][0]


def test_a_run_on_two_nodes_that_is_preempted_goes_on_with_the_same_numbers(lab: Lab) -> None:
    site = dataclasses.replace(SITE, partition="main")
    held = lab.element("latent", 0, held=True, run__steps=12, checkpoint__every=1000, **SETTINGS)
    array, _, [element] = lab.submit([held], site, nodes=2)
    name = f"{array}_0"
    until(lambda: lab.steps(element) > 2, seconds=200, what=lambda: f"steps: {lab.said(name)}")
    urgent = ["--partition=urgent", "--nodes=2", f"--cpus-per-task={CPUS}", "--output=/dev/null", "--wrap=sleep 1"]
    lab.slurm.run("sbatch", *urgent)
    until(lambda: lab.slurm.job(name)["Restarts"] == "1", seconds=60, what=lambda: f"preemption: {lab.said(name)}")
    lab.hold.unlink()
    lab.ends(name, "COMPLETED", seconds=400)
    said = lab.said(name)
    assert len(re.findall(r"^Ray: 2 nodes at [\d.]+:\d+$", said, flags=re.MULTILINE)) == 2
    stopped = re.search(r"stopped after step (\d+)", said)
    assert stopped is not None, said
    assert f"latent-0: attempt 2, after step {stopped[1]}\n" in said
    undisturbed = lab.runs.run(rewards__train=[RewardSpec(name=LATENT)], run__steps=12, checkpoint__every=1000)
    resumed = TinyRun(folder=element.dir)
    assert same(resumed.adapter, undisturbed.adapter)
    assert unequal(resumed, undisturbed) == []


@pytest.mark.ray
def test_what_is_cancelled_leaves_nothing_and_what_gets_no_further_ends(lab: Lab) -> None:
    endless = {"run__steps": 10**5, "checkpoint__every": 10**5}
    stuck = lab.element("latent", 0, held=True, **endless)
    cancelled = lab.element("latent", 1, held=True, **endless, **SETTINGS)
    array, report, elements = lab.submit([stuck, cancelled], SITE)
    one, other = f"{array}_0", f"{array}_1"
    until(lambda: "attempt 1, after step 0" in lab.said(one), seconds=60, what=lambda: "the start of the first attempt")
    lab.slurm.run("scontrol", "requeue", one)
    until(lambda: lab.steps(elements[1]) > 0, seconds=150, what=lambda: f"a step: {lab.said(other)}")
    assert len(processes(lab.marker)) > 5
    lab.slurm.run("scancel", other)
    lab.ends(other, "CANCELLED", seconds=40)
    lab.ends(one, "FAILED", seconds=60)
    dir_of_one = re.escape(str(elements[0].dir))
    assert re.search(
        rf"^error: {dir_of_one}: no progress between two restarts: both began after step 0;", lab.said(one), flags=re.M
    )
    until(
        lambda: lab.slurm.job(report)["JobState"] not in ("PENDING", "RUNNING"), seconds=60, what=lambda: "the report"
    )
    until(lambda: processes(lab.marker) == {}, seconds=20, what=lambda: f"the end of {processes(lab.marker)}")
    assert lab.slurm.job(other)["Restarts"] == "0"
    assert "attempt 2" not in lab.said(other)
