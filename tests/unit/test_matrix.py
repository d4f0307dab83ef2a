"""Experiments: what a file expands to, what is refused, and how far runs have come."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flowrl.cli.main import main
from flowrl.config import ConfigError, load
from flowrl.matrix.experiment import read_experiment, runs_of, with_overrides
from flowrl.matrix.folder import EXPERIMENT_FILE, default_folder
from flowrl.matrix.manifest import MANIFEST, read_manifest, write_manifest
from flowrl.matrix.progress import begun, finished, steps_done, steps_logged
from flowrl.matrix.table import row_of, table

ROOT = Path(__file__).parents[2]
REWARDS = ROOT / "experiments" / "matched" / "rewards.yaml"
ARMS = "arms: {one: {}, two: {overrides: [rewards.train.0.weight=2]}}"
TEXT = f"question: Which?\nbase: {ROOT}/configs/pocket/ditreward.yaml\n{ARMS}\ndiffer: [rewards]\nseeds: [3, 5]\n"


def written(folder: Path, text: str = TEXT) -> Path:
    path = folder / "weights.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def expand(folder: Path, text: str = TEXT, *overrides: str) -> list[str]:
    experiment = with_overrides(read_experiment(written(folder, text), []), list(overrides))
    elements = write_manifest(runs_of(experiment, folder / "out"), folder / "out")
    return [element.name for element in elements]


def log(folder: Path, *rows: dict[str, float]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_the_arms_of_a_seed_stand_next_to_each_other_and_differ_as_declared(tmp_path: Path) -> None:
    assert expand(tmp_path, TEXT, "run.steps=7") == ["one-3", "two-3", "one-5", "two-5"]
    one, two, _, last = read_manifest(tmp_path / "out" / MANIFEST)
    assert (one.index, one.arm, one.seed, last.index) == (0, "one", 3, 3)
    assert one.dir == tmp_path / "out" / "one-3"
    configs = [element.load() for element in (one, two, last)]
    assert [config.run.steps for config in configs] == [7, 7, 7]
    assert [config.run.seed for config in configs] == [3, 3, 5]
    assert [config.run.dir for config in configs] == [str(element.dir) for element in (one, two, last)]
    assert [config.rewards.train[0].weight for config in configs] == [1.0, 2.0, 2.0]
    assert one.load(["placement.mode=local"]).placement.mode == "local"


def test_the_shipped_experiment_is_the_two_make_targets_for_any_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    for profile in ("pocket", "sd35-large-1gpu"):
        runs = runs_of(read_experiment(REWARDS, [f"profile={profile}"]), tmp_path)
        for run in runs[:2]:
            own = [f"run.name={run.name}", f"run.dir={tmp_path / run.name}", f"run.seed={run.seed}"]
            assert run.config == load(ROOT / "configs" / profile / f"{run.arm}.yaml", own)
        assert [run.name for run in runs] == [
            "ditreward-0",
            "hpsv3-0",
            "ditreward-1",
            "hpsv3-1",
            "ditreward-2",
            "hpsv3-2",
        ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            ("differ: [rewards]", "differ: [rewards.watch]"),
            r"the arms one and two differ in what is not declared: rewards\.train ",
        ),
        (
            ("weight=2]", "weight=2, optim.lr=0.5]"),
            r"not declared: optim\.lr \(optim\.lr: 0\.001 and 0\.5\)\. Make them equal, or add",
        ),
        (
            ("differ: [rewards]", "differ: [reward]"),
            r"weights\.yaml: differ: 'reward' is no key of a run; did you mean 'rewards'",
        ),
        (("weight=2]", "weight=2, run.seed=1]"), r"overrides: run\.seed is for the experiment to set"),
        (
            ("seeds: [3, 5]", "seeds: [3, 5]\ndecided_by: [oracle, dit_reward]"),
            r"decided_by: dit_reward cannot decide, for the arm one is trained on it, or on a part of it; name a",
        ),
        (
            ("weight=2]}}", "label=mine]}}\ndecided_by: [mine]"),
            r"decided_by: mine cannot decide, for the arm two is trained on it",
        ),
        (
            ("seeds: [3, 5]", "decided_by: [oracle, oracle]"),
            r"weights\.yaml: decided_by must name each measure once, .* got \['oracle', 'oracle'\]",
        ),
        (("seeds: [3, 5]", "seeds: [3, 3]"), r"seeds must be different numbers, at least one, got \[3, 3\]"),
        (("seeds: [3, 5]", "seed: [3]"), r"unknown key 'seed'; did you mean 'seeds'"),
        (("question: Which?\n", ""), r"weights\.yaml: question must be set"),
        (("two: {", "Two/1: {"), r"the name of an arm must be of small letters.*, got 'Two/1'"),
        ((ARMS, "arms: {one: {}}"), r"arms must be two or more, to be compared, got one"),
        (("two: {", "two: {config: none.yaml, "), r"none\.yaml: no such config file"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    assert change[0] in TEXT
    with pytest.raises(ConfigError, match=said):
        expand(tmp_path, TEXT.replace(*change))
    assert not (tmp_path / "out").exists()


def test_a_run_that_has_begun_keeps_its_configuration(tmp_path: Path) -> None:
    expand(tmp_path)
    before = (tmp_path / "out" / MANIFEST).read_bytes()
    expand(tmp_path, TEXT, "run.steps=7")  # nothing has begun
    expand(tmp_path)
    assert (tmp_path / "out" / MANIFEST).read_bytes() == before
    started = tmp_path / "out" / "two-3"
    log(started)
    (started / "config.yaml").write_text("", encoding="utf-8")
    assert begun(started)
    with pytest.raises(ConfigError, match=r"out: two-3 began with another configuration; give --out another folder"):
        expand(tmp_path, TEXT, "run.steps=7")
    assert (tmp_path / "out" / MANIFEST).read_bytes() == before
    expand(tmp_path)


def test_a_configuration_that_was_changed_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expand(tmp_path)
    [first, *_] = read_manifest(tmp_path / "out" / MANIFEST)
    first.config.write_text(first.config.read_text() + "\n")
    with pytest.raises(ConfigError, match=r"one-3\.yaml: is not as the experiment wrote it"):
        first.load()
    assert main(["matrix", str(tmp_path / "out" / MANIFEST), "--element", "9"]) == 2
    assert "manifest.jsonl has 0 to 3" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "[1]\n", '{"index": 1}\n'])
def test_what_is_no_manifest_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"m\.jsonl: is no manifest, of whose lines each has index, arm, seed"):
        read_manifest(tmp_path / "m.jsonl")


def test_a_run_is_finished_when_its_last_step_was_logged_and_its_adapter_is_there(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert (steps_done(run), steps_logged(run), finished(run, 2)) == (0, 0, False)
    log(run, {"step": 0}, {"step": 1}, {"step": 2})
    assert steps_logged(run) == 2
    assert not finished(run, 2)
    (run / "lora").mkdir()
    (run / "lora" / "pytorch_lora_weights.safetensors").write_bytes(b"x")
    assert finished(run, 2)
    assert not finished(run, 3)


def test_the_table_tells_how_far_each_run_is_and_what_is_left(tmp_path: Path) -> None:
    expand(tmp_path, TEXT, "run.steps=4")
    elements = read_manifest(tmp_path / "out" / MANIFEST)
    first = elements[0].dir
    rows = [{"step": 0, "eval/dit_reward/mean": 1.0, "time/eval_s": 30.0}]
    rows += [{"step": step, "time/step_s": 60.0} for step in (1, 2)]
    log(first, *rows, {"step": 3, "time/step_s": 60.0, "time/checkpoint_s": 30.0, "eval/dit_reward/mean": 1.5})
    (first / "config.yaml").write_text("", encoding="utf-8")
    text = table([row_of(element, element.load()) for element in elements])
    lines = [line.split() for line in text.splitlines()]
    assert lines[1][:3] == ["one-3", "begun", "3/4"]
    assert text.splitlines()[1].endswith("dit_reward 1.000 to 1.500")
    assert lines[2] == ["two-3", "waiting", "0/4"]
    assert row_of(elements[0], elements[0].load()).spent_s == 240.0
    assert text.splitlines()[-1] == "0 of 4 runs are done; steps for 13 min 00 s are left, beside evaluations"


def test_the_command_prints_question_outlook_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["matrix", str(written(tmp_path)), "--out", str(tmp_path / "out"), "run.steps=7"]) == 0
    out = capsys.readouterr().out
    assert (
        "4 runs: 2 arms (one, two) with 2 seeds, 28 steps in all; arms may differ in rewards and in nothing else" in out
    )
    assert "two-5  waiting  0/7" in out


def test_what_decides_may_not_change_once_a_run_has_begun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["matrix", str(written(tmp_path)), "--out", str(out)]
    assert main(command) == 0
    written(tmp_path, TEXT + "decided_by: [oracle]\n")
    assert main(command) == 0  # nothing has begun
    (out / "one-3").mkdir()
    (out / "one-3" / "config.yaml").write_bytes((out / "configs" / "one-3.yaml").read_bytes())
    written(tmp_path, TEXT + "decided_by: [oracle_shape]\n")
    assert main(command) == 2
    assert "experiment.yaml: decided_by may not change once runs have begun there" in capsys.readouterr().err
    assert read_experiment(out / EXPERIMENT_FILE, []).decided_by == ["oracle"]


def test_an_experiment_is_no_configuration_of_a_run_and_is_checked_with_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(REWARDS)]) == 0
    assert main(["train", str(written(tmp_path))]) == 2
    assert "weights.yaml: is of another kind (experiment); start it with flowrl matrix" in capsys.readouterr().err


def test_what_is_kept_with_the_runs_is_the_experiment_with_all_that_was_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = TEXT.replace(f"{ROOT}/configs/pocket/", f"{ROOT}/configs/${{profile}}/") + "decided_by: [oracle]\n"
    out, words = tmp_path / "out", ["run.steps=7", "eval.every=${run.steps}", "rewards.train.0.scale=3"]
    assert main(["matrix", str(written(tmp_path, text)), "--out", str(out), *words]) == 0
    kept = out / EXPERIMENT_FILE
    found = read_experiment(kept, [])
    assert (found.question, found.base) == ("Which?", f"{ROOT}/configs/pocket/ditreward.yaml")
    assert (found.differ, found.seeds, found.decided_by) == (["rewards"], [3, 5], ["oracle"])
    assert found.arms["two"].overrides == ["rewards.train.0.weight=2", *words]
    configs = [element.load() for element in read_manifest(out / MANIFEST)]
    assert [(one.eval.every, one.rewards.train[0].scale) for one in configs] == [(7, 3.0)] * 4
    before = [(out / MANIFEST).read_bytes(), kept.read_bytes()]
    assert main(["matrix", str(kept)]) == 0
    assert [(out / MANIFEST).read_bytes(), kept.read_bytes()] == before
    assert main(["check", str(kept)]) == 0
    assert f"ok    {kept}" in capsys.readouterr().out


def test_an_experiment_is_in_a_folder_of_its_name_and_profile(tmp_path: Path) -> None:
    assert default_folder(REWARDS, read_experiment(REWARDS, ["profile=big"])) == Path("runs/rewards-big")
    mine = tmp_path / EXPERIMENT_FILE  # a name that anybody may give
    mine.write_text(TEXT, encoding="utf-8")
    assert default_folder(mine, read_experiment(mine, [])) == Path("runs/experiment-pocket")


@pytest.mark.parametrize("words", [["--run", "--slurm"], ["--run", "--element", "0"], ["--slurm", "--element", "0"]])
def test_an_experiment_is_trained_in_one_way(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["matrix", str(written(tmp_path)), *words])
    assert "not allowed with argument" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--dry-run"], ["--run", "--dry-run"], ["--site", "site.yaml"]])
def test_what_is_said_of_slurm_is_not_ignored_without_it(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["matrix", str(written(tmp_path)), "--out", str(tmp_path / "out"), *words]) == 2
    assert "is of --slurm: add --slurm, or leave it out" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_seed_is_not_given_to_all_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["matrix", str(written(tmp_path)), "--out", str(tmp_path / "out"), "run.seed=4"]) == 2
    assert "overrides: run.seed is for the experiment to set; use seeds" in capsys.readouterr().err
