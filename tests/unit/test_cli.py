"""The commands: fast help, clear errors, and what each verb hands on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import types
from collections.abc import Sequence
from pathlib import Path

import pytest

from flowrl import cli
from flowrl.base import checkpoint
from flowrl.base.errors import UserError
from flowrl.config import ConfigError, RunConfig, load

ROOT = Path(__file__).parents[2]
POCKET_CHECKPOINTS = ROOT / "flowrl" / "pocket" / "checkpoints"
DITREWARD = str(ROOT / "configs" / "pocket" / "ditreward.yaml")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, so that runs/ is that of the test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def handed_on(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[object, ...]]:
    """What the verbs hand to the parts that do the work, which have tests of their own."""
    calls: dict[str, tuple[object, ...]] = {}

    def write_report(run_dir: Path, out: Path | None = None) -> Path:
        calls["report"] = (run_dir, out)
        return out or run_dir / "report.html"

    def write_comparison(runs: Sequence[Path], out: Path | None = None) -> Path:
        calls["compare"] = (*runs, out)
        return out or Path("compare.html")

    def write_experiment_report(folder: Path, out: Path | None = None) -> Path:
        calls["experiment"] = (folder, out)
        return out or folder / "report.html"

    def run_training(config: RunConfig, resume: bool = False) -> int:
        calls["train"] = (config, resume)
        return 0

    def run_evaluation(config: RunConfig, adapter: Path | None) -> int:
        calls["eval"] = (config, adapter)
        return 0

    def build(out: Path, work: Path, seed: int, scale: float) -> None:
        calls["build"] = (out, work, seed, scale)

    for name, functions in {
        "flowrl.report.run_report": [write_report],
        "flowrl.matched.page": [write_comparison, write_experiment_report],
        "flowrl.run": [run_training, run_evaluation],
        "flowrl.pocket.build": [build],
    }.items():
        module = types.ModuleType(name)
        vars(module).update({function.__name__: function for function in functions})
        monkeypatch.setitem(sys.modules, name, module)
    return calls


def make_run(name: str, *overrides: str, reward: str = "dit_reward", age: int = 0) -> Path:
    """A run directory under runs/ as far as these commands look at it, started `age` seconds ago."""
    run = Path("runs") / name
    run.mkdir(parents=True)
    from flowrl.config import dump

    Path("source.yaml").write_text(f"rewards: {{train: [{{name: {reward}}}]}}\n", encoding="utf-8")
    file = run / "config.yaml"
    file.write_text(dump(load("source.yaml", [f"run.name={name}", *overrides])), encoding="utf-8")
    then = time.time() - age
    os.utime(file, (then, then))
    (run / "metrics.jsonl").write_text('{"step": 0}\n', encoding="utf-8")
    return run


def test_help_is_fast_and_imports_nothing_heavy() -> None:
    code = "import sys, flowrl.cli as c; c.main(['--help']); print(sorted(m for m in sys.modules if '.' not in m))"
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert time.monotonic() - start < 5  # a twentieth of a second; loading torch alone takes longer than this allows
    overview, _, modules = done.stdout.rpartition("\n[")
    assert overview.startswith("usage: flowrl COMMAND ...")
    for heavy in ("torch", "ray", "omegaconf", "numpy", "yaml"):
        assert f"'{heavy}'" not in modules


def test_help_of_python_m_flowrl_is_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flowrl", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert cli.main(["--help"]) == 0
    assert done.returncode == 0
    assert done.stdout == capsys.readouterr().out


@pytest.mark.parametrize(
    "verb", ["train", "show", "check", "eval", "report", "pocket build", "pocket info", "pocket images"]
)
def test_every_verb_explains_itself_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main([verb, "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: flowrl {verb}")
    assert f"example:\n  flowrl {verb}" in text
    cli.main(["--help"])
    assert f"  {verb}  " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("verb", "entries"),
    [
        ("train", ["rewards.train.0.weight=2"]),
        ("plan", ["rewards.train.0.weight=2"]),
        ("reward train", ["data.train.0.weight=2"]),
        ("reward prepare", ["data.train.0.weight=2"]),
        ("reward eval", ["benchmarks.0.max_comparisons=500"]),
        ("reward probe", []),
    ],
)
def test_help_names_an_entry_of_a_list_that_the_config_has(
    verb: str, entries: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main([*verb.split(), "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert re.findall(r"such as (\w[\w.]*\.0\.\w+=\w+)", said) == entries
    assert ("of a list an entry by its number, from 0, such as" in said) == bool(entries)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == "flowrl 0.1.0\n"


def test_nothing_is_wrong_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert capsys.readouterr().err.startswith("usage: flowrl COMMAND")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trian"], "unknown command 'trian'; did you mean 'train'?"),
        (["zzz"], "unknown command 'zzz'; see flowrl --help"),
        (["train"], "train: name a config, such as configs/pocket/ditreward.yaml, or a run with --resume"),
        (["train", "run.steps=3"], "train: name a config, such as configs/pocket/ditreward.yaml, or a run with"),
        (["train", "none.yaml"], "none.yaml: no such config file"),
        (["train", DITREWARD, "rollout.group_sizee=3"], "unknown key 'rollout.group_sizee'; did you mean 'rollout.gr"),
        (["train", DITREWARD, "rollout.group_size=1"], "rollout.group_size must be at least 2, got 1"),
        (["train", "--resume", "runs/none"], "runs/none: not a run: there is no config.yaml in it"),
        (["show", "runs/none"], "runs/none: not a run: there is no config.yaml in it"),
        (["check", "."], ".: no .yaml file in this folder"),
        (["eval", "none.yaml"], "none.yaml: no such config file"),
        (["report"], "runs/: no run here; make one with flowrl train configs/pocket/ditreward.yaml"),
        (["report", "--compare"], "runs/: no run that trained; make rl-ditreward and make rl-hpsv3 make two"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"flowrl: error: {expected}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_run_that_is_not_there_names_the_closest(capsys: pytest.CaptureFixture[str]) -> None:
    make_run("ditreward-20260131-154500")
    assert cli.main(["report", "runs/ditreward-20260131-15450"]) == 2
    assert "did you mean runs/ditreward-20260131-154500?" in capsys.readouterr().err


def test_errors_of_ours_are_not_hidden(
    handed_on: dict[str, tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(config: RunConfig, resume: bool = False) -> int:
        raise ValueError("a defect")

    monkeypatch.setattr(sys.modules["flowrl.run"], "run_training", fail)
    with pytest.raises(ValueError, match="a defect"):
        cli.main(["train", DITREWARD])


def test_errors_of_the_user_from_within_a_verb(
    handed_on: dict[str, tuple[object, ...]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(config: RunConfig, resume: bool = False) -> int:
        raise ConfigError("run.dir=runs/x must be new")

    monkeypatch.setattr(sys.modules["flowrl.run"], "run_training", refuse)
    assert cli.main(["train", DITREWARD]) == 2
    assert capsys.readouterr().err == "flowrl: error: run.dir=runs/x must be new\n"


def test_the_traceback_of_an_error_is_shown_when_it_is_asked_for(
    handed_on: dict[str, tuple[object, ...]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(config: RunConfig, resume: bool = False) -> int:
        try:
            raise KeyError("colour")
        except KeyError as error:
            raise UserError("the reward fails") from error

    monkeypatch.setattr(sys.modules["flowrl.run"], "run_training", fail)
    assert cli.main(["train", DITREWARD]) == 2
    assert capsys.readouterr().err == "flowrl: error: the reward fails\n"
    assert cli.main(["train", DITREWARD, "--traceback"]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("Traceback (most recent call last):")
    assert "KeyError: 'colour'" in errors
    assert errors.endswith("\nflowrl: error: the reward fails\n")


def test_ctrl_c_is_exit_code_130(
    handed_on: dict[str, tuple[object, ...]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(config: RunConfig, resume: bool = False) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["flowrl.run"], "run_training", interrupt)
    assert cli.main(["train", DITREWARD]) == 130
    assert capsys.readouterr().err == "flowrl: interrupted\n"


def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"{sys.executable} -m flowrl show {DITREWARD} | true"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""


def test_show_prints_what_a_run_would_save(capsys: pytest.CaptureFixture[str], elsewhere: Path) -> None:
    assert cli.main(["show", DITREWARD, "run.name=mine", "optim.lr=1e-5"]) == 0
    printed = elsewhere / "printed.yaml"
    printed.write_text(capsys.readouterr().out, encoding="utf-8")
    assert load(printed) == load(DITREWARD, ["run.name=mine", "optim.lr=1e-5"])


def test_show_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run("mine", "optim.lr=0.5")
    assert cli.main(["show", str(run)]) == 0
    assert "lr: 0.5" in capsys.readouterr().out


def test_check_prints_a_line_for_each_config(capsys: pytest.CaptureFixture[str], elsewhere: Path) -> None:
    (elsewhere / "configs").mkdir()
    (elsewhere / "configs" / "good.yaml").write_text("rewards: {train: [{name: oracle}]}\n", encoding="utf-8")
    assert cli.main(["check", "configs", DITREWARD]) == 0
    assert capsys.readouterr().out == f"ok    configs/good.yaml\nok    {DITREWARD}\n"
    (elsewhere / "configs" / "bad.yaml").write_text("run: {stepz: 3}\n", encoding="utf-8")
    assert cli.main(["check", "configs", "none.yaml"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "FAIL  configs/bad.yaml: unknown key 'run.stepz'; did you mean 'run.steps'?",
        "ok    configs/good.yaml",
        "FAIL  none.yaml: no such config file",
    ]


def test_train_hands_on_the_config(handed_on: dict[str, tuple[object, ...]]) -> None:
    assert cli.main(["train", DITREWARD, "run.name=mine", "run.steps=3", "run.seed=1"]) == 0
    config, resume = handed_on["train"]
    assert config == load(DITREWARD, ["run.name=mine", "run.steps=3", "run.seed=1"])
    assert resume is False


@pytest.mark.parametrize(
    "words",
    [
        ["--resume", "runs/mine", "run.steps=80"],
        ["run.steps=80", "--resume", "runs/mine"],
        ["--resume", "mine", "run.steps=80"],
        ["--resume", "runs/latest", "run.steps=80"],
        ["--resume=runs/mine/", "run.steps=80"],
    ],
)
def test_resume_takes_the_config_of_the_run(words: list[str], handed_on: dict[str, tuple[object, ...]]) -> None:
    run = make_run("mine", "optim.lr=0.5")
    Path("runs/latest").symlink_to("mine")
    assert cli.main(["train", *words]) == 0
    config, resume = handed_on["train"]
    assert config == load(run / "config.yaml", ["run.steps=80"])
    assert resume is True


def test_resume_of_a_run_that_was_moved(handed_on: dict[str, tuple[object, ...]]) -> None:
    make_run("mine").rename("moved")
    assert cli.main(["train", "--resume", "moved"]) == 0
    config, _ = handed_on["train"]
    assert isinstance(config, RunConfig)
    assert (config.run.name, config.run.dir) == ("moved", "moved")


def test_resume_with_another_config(handed_on: dict[str, tuple[object, ...]]) -> None:
    make_run("mine")
    assert cli.main(["train", DITREWARD, "run.steps=80", "--resume", "runs/mine", "optim.lr=0.1"]) == 0
    assert handed_on["train"] == (
        load(DITREWARD, ["run.name=mine", "run.steps=80", "optim.lr=0.1"]),
        True,
    )


def test_eval_of_a_config_trains_nothing(handed_on: dict[str, tuple[object, ...]]) -> None:
    assert cli.main(["eval", DITREWARD, "eval.num_prompts=128", "run.steps=9"]) == 0
    config, weights = handed_on["eval"]
    assert isinstance(config, RunConfig)
    assert (config.run.steps, config.eval.num_prompts, weights) == (0, 128, None)
    assert config.run.name.startswith("ditreward-eval-")
    assert config.run.dir == f"runs/{config.run.name}"


def test_eval_of_a_run_takes_its_weights_and_writes_elsewhere(
    handed_on: dict[str, tuple[object, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("mine", "optim.lr=0.5")
    assert cli.main(["eval", str(run)]) == 2
    assert "the run has not ended" in capsys.readouterr().err
    (run / "lora").mkdir()
    assert cli.main(["eval", str(run), "run.name=again"]) == 0
    config, weights = handed_on["eval"]
    assert isinstance(config, RunConfig)
    assert (config.optim.lr, config.run.dir, weights) == (0.5, "runs/again", run / "lora")


def test_the_same_evaluation_has_the_same_name_and_is_made_once(
    handed_on: dict[str, tuple[object, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = make_run("mine") / "lora" / "adapter.safetensors"
    adapter.parent.mkdir()

    def named(*words: str, weights: bytes = b"1") -> str:
        adapter.write_bytes(weights)
        assert cli.main(["eval", "mine", *words]) == 0
        config, _ = handed_on["eval"]
        assert isinstance(config, RunConfig)
        return config.run.name

    first = named()
    assert first.startswith("mine-eval-")
    assert named("placement.num_rollouts=3", "optim.lr=0.1") == first
    assert len({first, named("eval.seed=5"), named("eval.weights=ema"), named(weights=b"2")}) == 4
    made = make_run(first)
    handed_on.clear()
    assert cli.main(["eval", "mine", "eval.seed=1234"]) == 0
    adapter.write_bytes(b"1")
    assert cli.main(["eval", "mine"]) == 0
    assert capsys.readouterr().out.endswith(f"{made}: has this evaluation already; run.overwrite=true makes it again\n")


def test_a_checkpoint_is_evaluated_when_it_is_whole(
    handed_on: dict[str, tuple[object, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("mine", "optim.lr=0.5")
    folder = checkpoint.save(run / "checkpoints", 40, lambda path: (path / "ema.safetensors").write_bytes(b"x"), keep=1)
    assert cli.main(["eval", str(folder), "eval.weights=ema"]) == 0
    config, weights = handed_on["eval"]
    assert isinstance(config, RunConfig)
    assert config.run.name.startswith("mine-step_000040-eval-")
    assert (config.optim.lr, config.eval.weights, weights) == (0.5, "ema", folder)
    (folder / "ema.safetensors").write_bytes(b"y")
    assert cli.main(["eval", str(folder)]) == 2
    assert "ema.safetensors is not as it was written (truncated or changed)" in capsys.readouterr().err


def test_report_is_of_the_latest_run_by_default(
    handed_on: dict[str, tuple[object, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("older", age=100)
    newer = make_run("newer", age=10)
    make_run("oldest", age=1000)
    (make_run("failed-at-start", age=1) / "metrics.jsonl").unlink()
    Path("runs/latest").symlink_to("oldest")
    assert cli.main(["report"]) == 0
    assert handed_on["report"] == (newer, None)
    assert capsys.readouterr().out == "runs/newer/report.html\n"
    assert cli.main(["report", "older", "--out", "page.html"]) == 0
    assert handed_on["report"] == (Path("runs/older"), Path("page.html"))


def test_compare_takes_the_latest_runs_of_different_rewards(handed_on: dict[str, tuple[object, ...]]) -> None:
    for age, name in enumerate(["c", "b", "a"]):
        make_run(f"dit-{name}", age=10 + age)
    make_run("hps-old", reward="hpsv3", age=2000)
    make_run("hps", reward="hpsv3", age=1000)
    make_run("hps-eval", "run.steps=0", reward="hpsv3", age=1)
    Path("runs/torn").mkdir()
    Path("runs/torn/config.yaml").write_text("run: {name: ", encoding="utf-8")
    runs = Path("runs")
    for words, expected in {
        ("--compare",): (runs / "dit-c", runs / "hps", None),
        ("runs/hps-old", "--compare"): (runs / "hps-old", runs / "dit-c", None),
        ("dit-a", "--compare", "hps-old"): (runs / "dit-a", runs / "hps-old", None),
        ("--compare", "hps-old"): (runs / "hps-old", runs / "dit-c", None),
        ("dit-a", "--compare", "hps", "--compare", "dit-b"): (runs / "dit-a", runs / "hps", runs / "dit-b", None),
        ("--compare", "--out", "both.html"): (runs / "dit-c", runs / "hps", Path("both.html")),
    }.items():
        assert cli.main(["report", *words]) == 0
        assert handed_on["compare"] == expected


def test_the_report_of_an_experiment_is_asked_for_by_folder_name_manifest_or_file(
    handed_on: dict[str, tuple[object, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("latest-one")
    arms = "{one: {}, two: {overrides: [rewards.train.0.weight=2]}}"
    text = f"question: Which?\nbase: {DITREWARD}\narms: {arms}\ndiffer: [rewards]\n"
    Path("weights.yaml").write_text(text, encoding="utf-8")
    assert cli.main(["report", "weights.yaml"]) == 2
    said = capsys.readouterr().err
    assert "weights.yaml: has not been run: there is no runs/weights-pocket/manifest.jsonl; run it with flowrl" in said
    assert cli.main(["matrix", "weights.yaml"]) == 0
    capsys.readouterr()
    folder = Path("runs/weights-pocket")
    for name in (
        f"{folder}",
        "weights-pocket",
        f"{folder}/manifest.jsonl",
        "weights.yaml",
        f"{folder}/experiment.yaml",
    ):
        assert cli.main(["report", name]) == 0
        assert handed_on.pop("experiment") == (folder, None)
        assert capsys.readouterr().out == f"{folder}/report.html\n"
    assert cli.main(["report", str(folder), "--out", "page.html"]) == 0
    assert handed_on["experiment"] == (folder, Path("page.html"))
    assert cli.main(["report", str(folder), "--compare", "latest-one"]) == 2
    assert f"--compare is of runs, and {folder} is an experiment; flowrl report" in capsys.readouterr().err
    assert cli.main(["report"]) == 0
    assert handed_on["report"] == (Path("runs/latest-one"), None)


def test_an_experiment_that_is_run_ends_with_its_report_and_says_how_to_have_it_judged(
    handed_on: dict[str, tuple[object, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    arms = "{one: {}, two: {overrides: [rewards.train.0.weight=2]}}"
    text = f"question: Which?\nbase: {DITREWARD}\narms: {arms}\ndiffer: [rewards]\nseeds: [0]\n"
    Path("weights.yaml").write_text(text, encoding="utf-8")
    folder = Path("runs/weights-pocket")
    for name in ("one-0", "two-0"):  # as finished runs look
        (folder / name / "lora").mkdir(parents=True)
        (folder / name / "lora" / "pytorch_lora_weights.safetensors").write_bytes(b"x")
        (folder / name / "metrics.jsonl").write_text('{"step": 2}\n', encoding="utf-8")
    words = ["matrix", "weights.yaml", "run.steps=2"]
    assert cli.main(words) == 0
    assert "experiment" not in handed_on
    assert cli.main([*words, "--run"]) == 0
    assert handed_on["experiment"] == (folder, None)
    told = capsys.readouterr().out.splitlines()
    assert told[-2] == f"{folder}/report.html"
    assert told[-1] == f"not judged yet: flowrl judge {folder} --judge oracle, then flowrl report {folder}"
    (folder / "judged").mkdir()
    assert cli.main([*words, "--run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{folder}/report.html"


def test_compare_needs_two_rewards(
    handed_on: dict[str, tuple[object, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("one", age=5)
    make_run("two")
    assert cli.main(["report", "--compare"]) == 2
    assert "no run that trained on another reward than runs/two" in capsys.readouterr().err


def test_pocket_build_hands_on_its_folders(handed_on: dict[str, tuple[object, ...]]) -> None:
    assert cli.main(["pocket", "build", "--work", "w", "--out", "o", "--seed", "3"]) == 0
    assert handed_on["build"] == (Path("o"), Path("w"), 3, 1.0)
    assert cli.main(["pocket", "build", "--scale", "0.1", "--out", "o"]) == 0
    assert handed_on["build"] == (Path("o"), Path(".pocket-build"), 0, 0.1)


def test_a_small_pocket_build_does_not_replace_the_models_of_the_package(
    handed_on: dict[str, tuple[object, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["pocket", "build", "--scale", "0.1"]) == 2
    assert "name another --out" in capsys.readouterr().err
    assert "build" not in handed_on


def test_a_family_of_commands_lists_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pocket"]) == 2
    assert cli.main(["pocket", "--help"]) == 0
    captured = capsys.readouterr()
    assert captured.out == captured.err
    assert [line.split()[:2] for line in captured.out.splitlines() if line.startswith("  ")] == [
        ["pocket", "build"],
        ["pocket", "preferences"],
        ["pocket", "info"],
        ["pocket", "images"],
    ]
    assert cli.main(["pocket", "biuld"]) == 2
    assert capsys.readouterr().err == "flowrl: error: pocket: unknown command 'biuld'; did you mean 'build'?\n"


def test_pocket_info_tells_what_the_record_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pocket", "info"]) == 0
    page = capsys.readouterr().out
    record = json.loads((POCKET_CHECKPOINTS / "provenance.json").read_text(encoding="utf-8"))
    stages = record["stages"]
    assert record["command"] in page
    for name in ("vae", "policy", "dit_reward", "hpsv3"):
        assert f"{stages[name]['parameters']:,}" in page
    [row] = [line.split() for line in page.splitlines() if line.startswith("hpsv3") and line.count(".") == 6]
    assert float(row[1]) == pytest.approx(100 * stages["hpsv3"]["accuracy"]["policy"], abs=0.05)
