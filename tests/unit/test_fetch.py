"""`flowrl fetch` against a server on this machine: what comes, what is continued, and what is said when it fails."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save

from flowrl import cli
from flowrl.base.embedded import EMBEDDED
from flowrl.config import load
from flowrl.fetch.needs import needs
from flowrl.fetch.record import RECORD
from flowrl.models.sd3_folder import check_folder
from tests.hub_server import TOKEN, HubServer, hub_server

POLICY = "stabilityai/stable-diffusion-3.5-medium"
FLOW_GRPO = "yifan123/flow_grpo"
SHARD = "transformer/diffusion_pytorch_model.safetensors"
CONFIG = """
model: {path: models/stable-diffusion-3.5-medium}
data: {train_prompts: data/pickscore_sfw/train.txt, eval_prompts: data/pickscore_sfw/test.txt}
rewards:
  train: [{name: hpsv3}]
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A mirror with a small pipeline of the published layout and the prompts, and a config that needs both."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 50_000)  # of 10 MB, what is not whole is not written
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    Path("run.yaml").write_text(CONFIG, encoding="utf-8")
    with hub_server() as server:
        folder = EMBEDDED / "sd35"
        policy = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        unwanted = (
            "sd3.5_medium.safetensors",
            "text_encoder/model.fp16.safetensors",
            "text_encoders/clip_l.safetensors",
        )
        server.repositories[POLICY] = {**policy, "README.md": b"a card", **dict.fromkeys(unwanted, b"duplicate")}
        server.repositories[FLOW_GRPO] = {
            "dataset/pickscore_sfw/train.txt": "".join(f"prompt {n}\n" for n in range(15_486)).encode(),
            "dataset/pickscore_sfw/test.txt": "".join(f"held out {n}\n" for n in range(1_024)).encode(),
        }
        server.large = {name for name in policy if name.endswith(".safetensors")}
        yield server


def fetch(hub: HubServer, *words: str) -> int:
    return cli.main(["fetch", "run.yaml", "--from", hub.url, *words])


def with_network(**more: str) -> dict[str, str]:
    """The environment of a command that may use the network."""
    return {name: value for name, value in {**os.environ, **more}.items() if name != "HF_HUB_OFFLINE"}


def files_below(folder: Path) -> set[str]:
    """The files of a folder but for those that fetch keeps for itself."""
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file() and file.name[0] != "."}


def test_everything_that_a_config_needs_comes_to_where_it_names_it(
    hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fetch(hub) == 0
    policy = Path("models/stable-diffusion-3.5-medium")
    check_folder(policy)
    published = hub.repositories[POLICY]
    wanted = {name for name in published if "fp16" not in name and "/" in name and "text_encoders" not in name}
    assert files_below(policy) == wanted | {"model_index.json"}
    assert all((policy / name).read_bytes() == published[name] for name in files_below(policy))
    assert Path("data/pickscore_sfw/test.txt").read_text().startswith("held out 0\n")
    assert [need for need in needs(load("run.yaml")) if not need.present] == []
    said = capsys.readouterr().out
    assert "15,486 prompts" in said
    assert said.endswith("everything is there and whole\n")
    assert not list(Path().rglob("*.part"))


def test_what_is_there_and_whole_is_not_transferred_again(hub: HubServer) -> None:
    assert fetch(hub) == 0
    hub.asked.clear()
    assert fetch(hub) == 0
    assert hub.asked == []


def test_a_copy_that_fetch_did_not_make_is_compared_and_not_transferred(hub: HubServer) -> None:
    policy = Path("models/stable-diffusion-3.5-medium")
    shutil.copytree(EMBEDDED / "sd35", policy)
    (policy / "vae/config.json").unlink()
    assert fetch(hub) == 0
    assert [one.path.rpartition("/resolve/")[2] for one in hub.gets() if POLICY in one.path] == [
        f"{'c' * 40}/vae/config.json"
    ]


def test_pointers_that_git_left_in_place_of_weights_are_replaced(hub: HubServer) -> None:
    policy = Path("models/stable-diffusion-3.5-medium")
    shutil.copytree(EMBEDDED / "sd35", policy)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    for name in (SHARD, "sd3.5_medium.safetensors"):  # the second is not one that flowrl reads
        (policy / name).write_text(pointer, encoding="utf-8")
    assert fetch(hub) == 0
    assert (policy / SHARD).read_bytes() == hub.repositories[POLICY][SHARD]
    assert (policy / "sd3.5_medium.safetensors").read_text(encoding="utf-8") == pointer
    assert cli.main(["fetch", "run.yaml", "--check"]) == 0


@pytest.mark.parametrize("damage", ["shorter", "a byte", "gone"])
def test_a_damaged_file_is_named_once_by_check_and_fetched_again(
    hub: HubServer, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    assert fetch(hub) == 0
    file = Path("models/stable-diffusion-3.5-medium") / SHARD
    whole = file.read_bytes()
    size = len(whole)
    file.write_bytes(whole[:-100] if damage == "shorter" else whole[:-1] + bytes([whole[-1] ^ 1]))
    if damage == "gone":
        file.unlink()
    capsys.readouterr()
    assert cli.main(["fetch", "run.yaml", "--check"]) == 1
    told = {
        "shorter": f"damaged: it holds {size - 100:,} bytes, at its source {size:,}",
        "a byte": f"damaged: it has the {size:,} bytes of its source, but another checksum",
        "gone": "missing",
    }[damage]
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if SHARD in line] == [f"        {file}: {told}"]
    hub.asked.clear()
    assert fetch(hub) == 0
    assert [one.path.endswith(SHARD) for one in hub.gets()] == [True]
    assert file.read_bytes() == whole
    assert cli.main(["fetch", "run.yaml", "--check"]) == 0


def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub: HubServer) -> None:
    hub.cut[SHARD] = 100_000
    assert fetch(hub) == 0
    assert [one.start for one in hub.gets(SHARD)] == [0, 100_000]


class Cuts(dict[str, int]):
    """Ends the answers for one file after these many bytes, the last of them for ever."""

    def __init__(self, name: str, *amounts: int) -> None:
        super().__init__({name: amounts[-1]})
        self._first = list(amounts[:-1])

    def pop(self, key: str) -> int:  # type: ignore[override]  # as the server calls it
        return self._first.pop(0) if self._first else self[key]


@pytest.mark.parametrize(
    ("cuts", "kept"), [((30_000,), "nothing"), ((120_000, 30_000), "100 kB")], ids=["early", "late"]
)
def test_a_connection_that_breaks_for_ever_is_said_once_with_what_is_kept(
    hub: HubServer,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    cuts: tuple[int, ...],
    kept: str,
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)  # a second between two tries
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "propagate", True)
    hub.cut = Cuts(SHARD, *cuts)
    assert fetch(hub) == 1
    assert len(hub.gets(SHARD)) == 6
    assert caplog.messages == []
    problem, *advice = capsys.readouterr().err.splitlines()
    host = hub.url.removeprefix("http://")
    start = f"model.path: huggingface.co/{POLICY}: {SHARD}: did not come whole from {host}, asked 6 times (peer "
    assert problem.startswith(f"flowrl: error: {start}")
    assert problem.endswith(f"); {kept} of it is kept")
    again = "start the same command again: whole files are kept, and of a download that broke off every full 50.0 kB"
    assert advice[1] == f"  {again}"
    parts = [file.stat().st_size for file in Path("models").rglob("*.part")]
    assert parts == ([] if kept == "nothing" else [100_000])


def test_a_second_call_continues_what_the_first_could_not_finish(
    hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.cut[SHARD], hub.status[SHARD] = 100_000, 503
    assert fetch(hub) == 1
    assert "the server answered 503" in capsys.readouterr().err
    target = Path("models/stable-diffusion-3.5-medium") / SHARD
    assert not target.exists()
    hub.status.clear()
    hub.asked.clear()
    assert fetch(hub) == 0
    assert [one.start for one in hub.gets(SHARD)] == [100_000]
    assert "100 kB of which are here" in capsys.readouterr().out
    assert target.read_bytes() == hub.repositories[POLICY][SHARD]


def test_a_token_does_not_follow_a_file_to_another_server(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.gated = {POLICY}
    with hub_server() as store:
        store.repositories = hub.repositories
        store.cut[SHARD] = 100_000
        hub.moved[SHARD] = store.url
        assert fetch(hub) == 0
        assert [(one.start, one.authorization) for one in store.gets(SHARD)] == [(0, ""), (100_000, "")]
    assert {one.authorization for one in hub.gets() if POLICY in one.path} == {f"Bearer {TOKEN}"}
    assert {one.authorization for one in hub.asked if FLOW_GRPO in one.path} == {""}  # they are on GitHub
    check_folder(Path("models/stable-diffusion-3.5-medium"))


def test_ctrl_c_in_the_middle_of_a_file_leaves_what_has_arrived(hub: HubServer) -> None:
    hub.repositories[POLICY][SHARD] = save({"weight": np.zeros(12 * 2**20, dtype=np.float16)})
    hub.stalled[SHARD] = threading.Event()
    command = [sys.executable, "-m", "flowrl", "fetch", "run.yaml", "--from", hub.url]
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is started deaf to it
    process = subprocess.Popen(command, env=with_network(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, heard)
    target = Path("models/stable-diffusion-3.5-medium") / SHARD
    half = len(hub.repositories[POLICY][SHARD]) // 2
    deadline = time.monotonic() + 60
    while not any(one.path.endswith(SHARD) for one in hub.gets()) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    kept = "whole files are kept, and of a download that broke off every full 10.5 MB"
    assert errors == f"{kept}: the same command goes on from there\nflowrl: interrupted\n"
    assert not target.exists()
    (part,) = target.parent.glob(".*.part")
    begun = part.stat().st_size
    assert 0 < begun <= half
    hub.stalled.pop(SHARD).set()
    hub.asked.clear()
    assert fetch(hub) == 0
    assert [one.start for one in hub.gets(SHARD)] == [begun]
    assert target.read_bytes() == hub.repositories[POLICY][SHARD]


def test_a_wrong_checksum_is_said_and_nothing_of_it_is_kept(hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    content = hub.repositories[POLICY][SHARD]
    hub.sent[SHARD] = content[:-1] + bytes([content[-1] ^ 1])
    assert fetch(hub) == 1
    wanted, found = hashlib.sha256(content).hexdigest(), hashlib.sha256(hub.sent[SHARD]).hexdigest()
    assert capsys.readouterr().err.splitlines() == [
        f"flowrl: error: model.path: huggingface.co/{POLICY}: {SHARD}: wrong checksum, so what arrived was deleted",
        f"  published sha256:{wanted}",
        f"  arrived   sha256:{found}",
        "  1. start the same command again",
        "  2. where that gives the same, something on the way changes it: take it from another source with --from",
    ]
    transformer = Path("models/stable-diffusion-3.5-medium/transformer")
    assert {file.name for file in transformer.iterdir()} <= {"config.json"}
    assert Path("data/pickscore_sfw/train.txt").is_file()  # the rest came


def test_more_bytes_than_were_announced_are_not_kept(hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    hub.sent["vae/config.json"] = hub.repositories[POLICY]["vae/config.json"] + b" "
    assert fetch(hub) == 1
    assert "vae/config.json: other than" in capsys.readouterr().err
    assert not list(Path("models").rglob("*.part"))


def test_a_gated_repository_says_where_to_ask_and_how_to_log_in(
    hub: HubServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gated = {POLICY}
    assert fetch(hub) == 1
    problem, browser, token, again = capsys.readouterr().err.splitlines()
    assert problem == f"flowrl: error: model.path: huggingface.co/{POLICY}: gated (401), and you are not logged in"
    assert browser.startswith(f"  1. open https://huggingface.co/{POLICY} in a browser, log in and accept ")
    assert token.startswith("  2. make a token for reading")
    assert "hf auth login" in token
    assert again == "  3. start the same command again"
    assert Path("data/pickscore_sfw/train.txt").is_file()  # the rest came
    assert not any(POLICY in one.path for one in hub.gets())  # one HEAD told it
    monkeypatch.setenv("HF_TOKEN", "hf_of_someone_else")
    assert fetch(hub) == 1
    assert "gated (403), and your token does not open it" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert fetch(hub) == 0


def test_a_repository_and_a_file_that_are_gone_are_named(hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    del hub.repositories[POLICY]
    del hub.repositories[FLOW_GRPO]["dataset/pickscore_sfw/test.txt"]
    assert fetch(hub) == 1
    said = capsys.readouterr()
    assert f"model.path: huggingface.co/{POLICY}: not found (404)" in said.err
    assert "data.eval_prompts: github.com/yifan123/flow_grpo: not found (404)" in said.err
    assert said.out.endswith("1 of 3 are there and whole\n")


def test_a_repository_that_lost_a_file_is_named(hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    del hub.repositories[POLICY]["vae/config.json"]
    assert fetch(hub) == 1
    assert f"huggingface.co/{POLICY}: has no vae/config.json (any more)" in capsys.readouterr().err


def test_shards_that_the_source_lacks_are_missed(hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    del hub.repositories[POLICY][SHARD]
    assert fetch(hub) == 1
    assert f"{SHARD}: this file is missing" in capsys.readouterr().err


def test_no_answer_is_said_once_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], hub: HubServer
) -> None:
    assert cli.main(["fetch", "run.yaml", "--from", "http://127.0.0.1:1"]) == 1
    said = capsys.readouterr().err
    assert said.count("no answer from 127.0.0.1:1") == 3
    assert said.count("on a machine without a network --from FOLDER takes it from a copy") == 1


def test_offline_mode_is_an_error_that_names_its_variable(
    hub: HubServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch(hub) == 2
    assert "HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set" in capsys.readouterr().err
    assert hub.asked == []


@pytest.mark.parametrize(
    ("sent", "found"),
    [
        (b"<html>\nlog in to this network\n</html>\n", "3 prompts"),
        (b"not found\n", "1 prompt"),
        (b"\x1f\x8b\xff" * 9, "0 prompts"),
        (b"\n", "0 prompts"),
    ],
)
def test_a_page_in_place_of_prompts_is_refused(
    hub: HubServer, capsys: pytest.CaptureFixture[str], sent: bytes, found: str
) -> None:
    hub.repositories[FLOW_GRPO]["dataset/pickscore_sfw/train.txt"] = sent
    assert fetch(hub) == 1
    assert f"holds {found} where 15,486 were published" in capsys.readouterr().err
    assert not list(Path("data").rglob("*train*"))


def test_prompts_of_ones_own_are_left_alone(hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    mine = Path("data/pickscore_sfw/train.txt")
    mine.parent.mkdir(parents=True)
    mine.write_text("a prompt of mine\n", encoding="utf-8")
    assert fetch(hub) == 1
    assert f"{mine}: is another file than github.com/{FLOW_GRPO} has (17 bytes" in capsys.readouterr().err
    assert mine.read_text(encoding="utf-8") == "a prompt of mine\n"


def test_whole_weights_of_ones_own_are_left_alone(hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    mine = Path("models/stable-diffusion-3.5-medium") / SHARD
    mine.parent.mkdir(parents=True)
    shutil.copy(EMBEDDED / "sd35/vae/diffusion_pytorch_model.safetensors", mine)
    before = mine.read_bytes()
    assert fetch(hub) == 1
    assert "was not fetched by flowrl, so it is left alone" in capsys.readouterr().err
    assert mine.read_bytes() == before


def test_a_disk_that_is_too_small_is_said_before_anything_comes(
    hub: HubServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type(shutil.disk_usage("/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 10**6 - 1000, 1000))
    assert fetch(hub) == 2
    said = capsys.readouterr().err
    assert "are needed on this disk for models/stable-diffusion-3.5-medium" in said
    assert "1.00 kB are free" in said
    assert hub.gets() == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_on_the_way_keeps_what_has_arrived(
    hub: HubServer, capsys: pytest.CaptureFixture[str], small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type(shutil.disk_usage("/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 0, 10**12))  # as it was before others wrote
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(9 * 2**20))
    place = small_disk / "stable-diffusion-3.5-medium"
    assert fetch(hub, f"model.path={place}") == 1
    assert "no space is left on the disk" in capsys.readouterr().err
    (part,) = place.rglob("*.part")
    name = (
        str(part.relative_to(place).parent / part.name.removeprefix(".").rpartition(".safetensors")[0]) + ".safetensors"
    )
    assert not (place / name).exists()
    begun = part.stat().st_size
    assert begun > 0
    ballast.unlink()
    hub.asked.clear()
    assert fetch(hub, f"model.path={place}") == 0
    assert [one.start for one in hub.gets(name)] == [begun]
    assert (place / name).read_bytes() == hub.repositories[POLICY][name]


def test_a_dry_run_says_how_much_would_come_and_takes_nothing(
    hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fetch(hub, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "policy   models/stable-diffusion-3.5-medium: 18 files to fetch" in said
    assert f"from huggingface.co/{POLICY}, gated" in said
    assert "prompts  data/pickscore_sfw/test.txt: 1 file to fetch" in said
    assert hub.gets() == []
    assert not Path("models").exists()


def test_a_dry_run_claims_no_more_than_sizes(hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch(hub) == 0
    shard = Path("models/stable-diffusion-3.5-medium") / SHARD
    with shard.open("r+b") as file:
        file.seek(shard.stat().st_size // 2)
        file.write(b"\xff\xff\xff\xff")
    capsys.readouterr()
    assert fetch(hub, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "policy   models/stable-diffusion-3.5-medium: there, of its size (18 files, " in said
    assert said.count("; --check reads the checksums\n") == 3
    assert "whole" not in said
    assert cli.main(["fetch", "run.yaml", "--check"]) == 1


def test_the_help_says_what_the_exit_codes_mean(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["fetch", "--help"])
    said = capsys.readouterr().out
    assert "exit code:\n  0  everything is there" in said
    assert "\n  2  too little room on a disk" in said


def test_hf_endpoint_is_the_mirror_when_none_is_named(hub: HubServer) -> None:
    pocket = ["data.train_prompts=pocket", "data.eval_prompts=pocket"]
    command = [sys.executable, "-m", "flowrl", "fetch", "run.yaml", *pocket]
    done = subprocess.run(command, env=with_network(HF_ENDPOINT=hub.url), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    check_folder(Path("models/stable-diffusion-3.5-medium"))


def test_check_says_how_far_it_looked(hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch(hub) == 0
    Path("data/pickscore_sfw", RECORD).unlink()
    capsys.readouterr()
    assert cli.main(["fetch", "run.yaml", "--check"]) == 0
    policy, train, _ = capsys.readouterr().out.splitlines()
    assert policy.endswith("models/stable-diffusion-3.5-medium: checksums compared with those of the source")
    assert "not fetched by flowrl" in train


def test_a_damaged_record_is_said(hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch(hub) == 0
    record = Path("models/stable-diffusion-3.5-medium", RECORD)
    record.write_text(json.dumps({"parts": 3}), encoding="utf-8")
    assert fetch(hub) == 1
    assert f"{record}: damaged; remove it" in capsys.readouterr().err
    record.unlink()
    hub.asked.clear()
    assert fetch(hub) == 0
    assert hub.gets() == []
