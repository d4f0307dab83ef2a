"""`flowrl fetch --from FOLDER`: what is found in which folders, and that copies are as good as downloads."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flowrl import cli
from flowrl.base.embedded import EMBEDDED
from flowrl.models.sd3_folder import check_folder

POLICY = "stabilityai/stable-diffusion-3.5-medium"
TARGET = Path("models/stable-diffusion-3.5-medium")
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
CONFIG = """
model: {path: models/stable-diffusion-3.5-medium}
data: {train_prompts: pocket, eval_prompts: data/pickscore/test.txt}
rewards: {train: [{name: hpsv3}]}
"""


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that holds ORG/NAME/..., and a config that needs what is in it."""
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(CONFIG, encoding="utf-8")
    disk = tmp_path / "disk"
    shutil.copytree(EMBEDDED / "sd35", disk / POLICY)
    prompts = disk / "yifan123/flow_grpo/dataset/pickscore/test.txt"
    prompts.parent.mkdir(parents=True)
    prompts.write_text("".join(f"prompt {n}\n" for n in range(2_048)), encoding="utf-8")
    return disk


def fetch(disk: Path, *words: str) -> int:
    return cli.main(["fetch", "run.yaml", "--from", str(disk), *words])


def test_files_on_the_same_disk_are_linked(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch(disk) == 0
    check_folder(TARGET)
    assert (TARGET / WEIGHTS).samefile(disk / POLICY / WEIGHTS)
    assert Path("data/pickscore/test.txt").samefile(disk / "yifan123/flow_grpo/dataset/pickscore/test.txt")
    assert "to fetch: nothing that takes room" in capsys.readouterr().out
    assert not [file for file in Path("models").rglob(".*") if file.suffix in (".copy", ".part")]


def test_a_fetched_copy_is_verified_by_its_checksums(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch(disk) == 0
    assert cli.main(["fetch", "run.yaml", "--check"]) == 0
    content = (TARGET / WEIGHTS).read_bytes()
    (TARGET / WEIGHTS).unlink()  # a second name of the source's file, which is to stay as it is
    (TARGET / WEIGHTS).write_bytes(content[:-1] + b"\x7f")
    capsys.readouterr()
    assert cli.main(["fetch", "run.yaml", "--check"]) == 1
    assert f"{TARGET / WEIGHTS}: damaged" in capsys.readouterr().out
    assert fetch(disk) == 0
    assert (TARGET / WEIGHTS).read_bytes() == content


@pytest.mark.parametrize("place", ["stable-diffusion-3.5-medium", "cache"])
def test_other_layouts_of_a_folder_are_found(disk: Path, place: str) -> None:
    if place == "cache":  # as the Hub's own programs keep what they download
        cache = disk / f"models--{POLICY.replace('/', '--')}"
        (cache / "refs").mkdir(parents=True)
        (cache / "refs/main").write_text("abc", encoding="utf-8")
        place = str(cache.relative_to(disk) / "snapshots/abc")
        (cache / "snapshots").mkdir()
    (disk / POLICY).rename(disk / place)
    assert fetch(disk) == 0
    check_folder(TARGET)


def test_links_of_a_cache_are_followed(disk: Path) -> None:
    blob = disk / "blob"
    (disk / POLICY / WEIGHTS).rename(blob)
    (disk / POLICY / WEIGHTS).symlink_to(blob)
    assert fetch(disk) == 0
    assert not (TARGET / WEIGHTS).is_symlink()
    assert (TARGET / WEIGHTS).samefile(blob)


def test_a_folder_that_another_flowrl_filled_is_verified_as_it_is_read(
    disk: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert fetch(disk) == 0
    shutil.copytree("models", "shared/models")
    shutil.copytree("data", "shared/models", dirs_exist_ok=True)
    shutil.rmtree("models")
    shutil.rmtree("data")
    torn = Path("shared/models/stable-diffusion-3.5-medium") / WEIGHTS
    content = torn.read_bytes()
    torn.write_bytes(content[:-1] + b"\x7f")
    assert fetch(Path("shared/models")) == 1
    assert f"{WEIGHTS}: wrong checksum" in capsys.readouterr().err
    assert torn.is_file()
    assert not (TARGET / WEIGHTS).exists()
    torn.write_bytes(content)
    assert fetch(Path("shared/models")) == 0
    check_folder(TARGET)
    assert Path("data/pickscore/test.txt").is_file()


def test_the_folder_in_which_another_flowrl_works_is_a_source(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fetch(disk) == 0
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy("run.yaml", other)
    monkeypatch.chdir(other)
    assert fetch(tmp_path) == 0
    assert (TARGET / WEIGHTS).samefile(tmp_path / TARGET / WEIGHTS)
    assert Path("data/pickscore/test.txt").samefile(tmp_path / "data/pickscore/test.txt")
    assert cli.main(["fetch", "run.yaml", "--check"]) == 0


def test_an_absolute_path_is_not_its_own_source(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = disk.parent / "elsewhere/stable-diffusion-3.5-medium"
    assert fetch(disk, f"model.path={target}") == 0
    assert (target / WEIGHTS).samefile(disk / POLICY / WEIGHTS)
    shutil.rmtree(disk / POLICY)
    (target / WEIGHTS).unlink()
    assert fetch(disk, f"model.path={target}") == 1
    assert f"must be in one of {disk / POLICY}, {disk / target.name}; copy" in capsys.readouterr().err


def test_what_a_folder_lacks_is_said_with_where_it_was_sought(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (disk / POLICY / "vae/config.json").unlink()
    assert fetch(disk) == 1
    said = capsys.readouterr().err
    places = f"{disk / TARGET}, {disk / POLICY}, {disk / 'stable-diffusion-3.5-medium'}"
    assert f"must be in one of {places}; copy them there" in said
    assert "vae/config.json" in said
    assert Path("data/pickscore/test.txt").is_file()  # the rest came


def test_cut_off_weights_of_a_folder_are_named(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (disk / POLICY / WEIGHTS).open("r+b") as file:
        file.truncate(100_000)
    assert fetch(disk) == 1
    assert f"{disk / POLICY / WEIGHTS}: truncated or damaged" in capsys.readouterr().err
    assert not TARGET.exists()


def test_no_such_folder_and_no_such_scheme_are_errors(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch(disk / "nowhere") == 2
    assert (
        "no such folder; name one that holds ORG/NAME/..., or a mirror by its URL, https://..."
        in capsys.readouterr().err
    )
    assert cli.main(["fetch", "run.yaml", "--from", "ftp://mirror"]) == 2
    assert "a mirror begins with http:// or https://" in capsys.readouterr().err


def test_a_profile_is_every_run_of_its_folder(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = Path("configs/mine")
    profile.mkdir(parents=True)
    shutil.copy("run.yaml", profile / "one.yaml")
    (profile / "two.yaml").write_text("rewards: {train: [{name: dit_reward, options: {path: runs/r/reward}}]}")
    (profile / "training.yaml").write_text("dit_reward: {}")  # no run, so not looked at
    assert cli.main(["fetch", "mine", "--from", str(disk)]) == 1
    said = capsys.readouterr()
    assert "rewards.train[0].options.path: runs/r/reward: no DiT-Reward is public, so train one" in said.err
    assert said.out.endswith("2 of 3 are there and whole\n")
    check_folder(TARGET)
    assert cli.main(["fetch", "mne"]) == 2
    assert "did you mean 'mine'?" in capsys.readouterr().err
