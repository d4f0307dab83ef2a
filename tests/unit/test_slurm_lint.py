"""Mistakes in batch scripts that only SLURM would meet: each is found, and the scripts of the package have none."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowrl.slurm.job import Job
from flowrl.slurm.lint import problems
from flowrl.slurm.scripts import Places, render
from flowrl.slurm.site import Site

GOOD = """#!/usr/bin/env bash
#SBATCH --array=0-3
#SBATCH --output={folder}/%A_%a.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@300

set -e
exec ./element.sh
"""
WAITS = """trap 'kill -USR1 "$child"' USR1
./train &
child=$!
wait "$child"
"""


def test_a_script_without_mistakes_has_none(tmp_path: Path) -> None:
    text = GOOD.format(folder=tmp_path)
    assert problems(text) == []
    assert problems(text.replace("exec ./element.sh\n", WAITS)) == []


def test_the_scripts_of_an_experiment_have_no_mistake(tmp_path: Path) -> None:
    places = Places(checkout=tmp_path, manifest=tmp_path / "manifest.jsonl", programs=tmp_path)
    places.folder.mkdir()
    scripts = render(Job(indices=(0, 1), nodes=1, gpus_per_node=8, cpus_per_node=8), Site(account="lab"), places)
    assert problems(scripts.array) == problems(scripts.report) == []


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("#!/usr/bin/env bash\n", "", "line 1: a batch script begins with #!"),
        ("set -e\n", "set -e\n#SBATCH --mem=1G\n", "line 9: SLURM reads no #SBATCH after the first command"),
        ("--array=0-3", "--array=0-$LAST", "line 2: SLURM expands no variables"),
        ("#SBATCH --requeue", "#SBATCH requeue", "line 5: an option of sbatch begins with -"),
        ("#SBATCH --requeue", "# SBATCH --requeue", "line 5: SLURM takes this for a comment"),
        ("#SBATCH --requeue", "##SBATCH --requeue", "line 5: SLURM takes this for a comment"),
        ("#SBATCH --requeue", "#SBTACH --requeue", "line 5: SLURM takes this for a comment"),
        ("B:USR1", "USR1", "--signal=USR1@300 without B: goes to all processes but the batch script"),
        ("USR1@300", "USR1", "--signal=B:USR1 says no time"),
        ("exec ./element.sh", "./element.sh", "the signal ends the batch script"),
        ("exec ./element.sh", "trap : USR1\n./element.sh", "the signal ends the batch script"),
        ("%A_%a", "%A", "has no %a: jobs would write one file"),
        ("%A_%a.out", "%A/%a.out", "SLURM makes no folders"),
        ("{folder}", "{folder}/none", "and SLURM makes none: the job would fail at once"),
        ("#SBATCH --output={folder}/%A_%a.out\n", "", "there is no --output"),
        ("#SBATCH --open-mode=append\n", "", "--requeue without --open-mode=append"),
        (
            "#SBATCH --requeue",
            "#SBATCH --requeue\n#SBATCH --array=0-5",
            "--array is given 2 times, and the last counts",
        ),
        ("set -e", 'scontrol requeue "$SLURM_JOB_ID"', "a job id names the whole array"),
        ("set -e", "scontrol requeue ${SLURM_ARRAY_JOB_ID}", "a job id names the whole array"),
    ],
)
def test_a_mistake_is_found(before: str, after: str, says: str, tmp_path: Path) -> None:
    assert before in GOOD
    found = problems(
        GOOD.replace(before, after, 1).format(folder=tmp_path)
        if "${" not in after
        else GOOD.format(folder=tmp_path).replace(before, after, 1)
    )
    assert len(found) == 1
    assert says in found[0]


def test_an_element_is_requeued_by_its_own_id(tmp_path: Path) -> None:
    right = 'scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"'
    assert problems(GOOD.format(folder=tmp_path).replace("set -e", right)) == []
