"""What a configuration needs, and that the published files named for a reward are those that the reward demands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flowrl import cli
from flowrl.base.embedded import EMBEDDED
from flowrl.config import ConfigError, load
from flowrl.fetch.needs import Need, named_paths, needs
from flowrl.fetch.sources import FOLDERS, PROMPTS, REWARDS, Part
from flowrl.models.sd35_published import PUBLISHED
from flowrl.registry import BUILT_IN, find
from flowrl.reward_protocols import NeededFiles
from rewards.hpsv3.layout import check_folder
from tests.cheap_rewards import LatentNorm
from tests.published import dina_lrm
from tests.published.clip_family import write_aesthetic, write_clip_score, write_hpsv2, write_pick_score
from tests.published.image_reward import write_image_reward

ROOT = Path(__file__).parents[2]


def needs_of(tmp_path: Path, text: str) -> list[Need]:
    """What a config of this text needs; it trains on a reward that comes with flowrl unless it says otherwise."""
    file = tmp_path / "run.yaml"
    file.write_text(text if "rewards:" in text else f"{text}\nrewards: {{train: [{{name: hpsv3}}]}}", encoding="utf-8")
    return needs(load(file))


@pytest.mark.parametrize("config", sorted((ROOT / "configs" / "pocket").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_pocket_run_needs_nothing(config: Path) -> None:
    assert needs(load(config)) == []


def test_the_large_run_on_hpsv3_needs_policy_reward_and_prompts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    found = needs(load(ROOT / "configs" / "sd35-large" / "hpsv3.yaml"))
    assert [(need.kind, need.key, str(need.path), need.gated, need.present) for need in found] == [
        ("policy", "model.path", "models/stable-diffusion-3.5-large", True, False),
        ("reward", "rewards.train[0].options.path", "models/HPSv3", False, False),
        ("prompts", "data.train_prompts", "data/pickscore/train.txt", False, False),
        ("prompts", "data.eval_prompts", "data/pickscore/test.txt", False, False),
    ]
    assert found[1].source == "huggingface.co/MizzenAI/HPSv3 and huggingface.co/Qwen/Qwen2-VL-7B-Instruct"


def test_a_reward_that_is_not_public_says_how_it_is_trained_to_where_it_is_named(tmp_path: Path) -> None:
    reward = "rewards: {train: [{name: dit_reward, options: {path: runs/reward-mine/reward}}]}"
    large, medium = (
        needs_of(tmp_path, f"model: {{path: {tmp_path}/stable-diffusion-3.5-{size}}}\n{reward}")[1]
        for size in ("large", "medium")
    )
    assert large.bundle is None
    assert large.source == ""
    assert "flowrl reward train configs/reward/sd35-large-full.yaml run.dir=runs/reward-mine " in large.advice
    assert "configs/reward/sd35-medium-full.yaml" in medium.advice
    assert all((ROOT / f"configs/reward/sd35-{size}-full.yaml").is_file() for size in ("large", "medium"))


def test_a_reward_without_a_backbone_of_its_own_needs_its_base(tmp_path: Path) -> None:
    folder = tmp_path / "reward"
    folder.mkdir()
    settings = {"format": "dit_reward", "backbone": "base", "base": "models/stable-diffusion-3.5-large"}
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    (base,) = needs_of(tmp_path, f"rewards: {{train: [{{name: dit_reward, options: {{path: {folder}}}}}]}}")
    assert (base.kind, base.bundle) == ("base", FOLDERS["stable-diffusion-3.5-large"])
    moved = "rewards: {train: [{name: dit_reward, options: {path: %s, base: models/stable-diffusion-3.5-medium}}]}"
    (base,) = needs_of(tmp_path, moved % folder)
    assert (base.key, base.bundle) == ("rewards.train[0].options.base", FOLDERS["stable-diffusion-3.5-medium"])
    on_images = "rewards: {train: [{name: dit_reward_pixels, options: {path: %s, encoders: models/mine}}]}"
    encoders, base = needs_of(tmp_path, on_images % folder)
    assert (encoders.key, str(encoders.path)) == ("rewards.train[0].options.encoders", "models/mine")
    assert (base.key, base.bundle) == (
        f"rewards.train[0].options.base (as {folder}/config.json has it)",
        FOLDERS["stable-diffusion-3.5-large"],
    )
    (folder / "config.json").write_text(json.dumps(settings | {"backbone": "own"}), encoding="utf-8")
    assert needs_of(tmp_path, f"rewards: {{train: [{{name: dit_reward, options: {{path: {folder}}}}}]}}") == []
    assert [need.path for need in needs_of(tmp_path, on_images % folder)] == [Path("models/mine")]
    (encoders,) = needs_of(tmp_path, f"rewards: {{train: [{{name: dit_reward_pixels, options: {{path: {folder}}}}}]}}")
    assert encoders.bundle == FOLDERS["stable-diffusion-3.5-large"]


class Downloaded(LatentNorm):
    """A reward of one's own, which reads a folder even where no option says so."""

    def __init__(self, weights: str = "models/mine", device: str = "cpu") -> None:
        super().__init__(device=device)

    @staticmethod
    def needs(weights: str, policy: str) -> tuple[NeededFiles, ...]:
        """The folder `weights`, trained on the policy."""
        return (NeededFiles(option="weights", path=Path(weights), advice=f"train it on {policy}"),)


def test_a_reward_of_ones_own_names_what_it_reads_by_default(tmp_path: Path) -> None:
    text = f"model: {{path: {tmp_path}/tiny}}\nrewards: {{train: [{{name: 'tests.unit.test_fetch_needs:Downloaded'}}]}}"
    _, need = needs_of(tmp_path, text)
    assert (need.kind, need.key, str(need.path)) == ("reward", "rewards.train[0].options.weights", "models/mine")
    assert (need.faults, need.advice) == (("models/mine: not there",), "train it on tiny")


def test_any_clip_may_score_but_only_one_is_known(tmp_path: Path) -> None:
    text = "rewards: {train: [{name: clip_score, options: {path: models/%s}}]}"
    (known,) = needs_of(tmp_path, text % "clip-vit-large-patch14")
    (other,) = needs_of(tmp_path, text % "my-clip")
    assert known.source == "huggingface.co/openai/clip-vit-large-patch14"
    assert other.source == ""
    assert "a folder called clip-vit-large-patch14; call it so, or put yours there" in other.advice


def test_options_that_do_not_fit_are_named_before_anything_comes(tmp_path: Path) -> None:
    text = "rewards: {train: [{name: dina_lrm, options: {path: models/DiNa}}]}"
    with pytest.raises(ConfigError, match=r"do not fit reward 'dina_lrm': missing a required argument: 'base'"):
        needs_of(tmp_path, text)


def test_a_path_that_two_keys_name_is_needed_once(tmp_path: Path) -> None:
    text = """
model: {path: models/stable-diffusion-3.5-medium}
rewards: {watch: [{name: dina_lrm, options: {path: models/DiNa, base: models/stable-diffusion-3.5-medium}}],
  train: [{name: hpsv3}]}
"""
    assert [need.key for need in needs_of(tmp_path, text)] == ["model.path", "rewards.watch[0].options.path"]


def test_an_unknown_path_is_a_need_until_something_is_there(tmp_path: Path) -> None:
    text = f"model: {{path: {tmp_path}/mine}}"
    (need,) = needs_of(tmp_path, text)
    assert need.faults == (f"{tmp_path}/mine: not there",)
    assert "get folders called stable-diffusion-3.5-large, stable-diffusion-3.5-medium; call it so, or" in need.advice
    (tmp_path / "mine").mkdir()
    assert [need.faults for need in needs_of(tmp_path, text)] == [(f"{tmp_path}/mine: empty",)]
    (tmp_path / "mine" / "model_index.json").write_text("{}", encoding="utf-8")
    assert needs_of(tmp_path, text) == []


def test_every_path_that_a_configuration_names_is_listed_whether_it_is_there_or_not(tmp_path: Path) -> None:
    there = tmp_path / "mine"
    there.mkdir()
    (there / "model_index.json").write_text("{}", encoding="utf-8")
    text = f"""
model: {{path: {there}}}
data: {{train_prompts: some/train.txt}}
rewards: {{train: [{{name: dina_lrm, options: {{path: a/DiNa, base: a/base}}}}, {{name: hpsv3}}],
  watch: [{{name: aesthetic, options: {{path: a/DiNa}}}}]}}
"""
    file = tmp_path / "run.yaml"
    file.write_text(text, encoding="utf-8")
    assert list(map(str, named_paths(load(file)))) == [str(there), "a/DiNa", "a/base", "some/train.txt"]


@pytest.mark.parametrize(
    ("harm", "fault"),
    [
        (lambda folder: (folder / "vae/config.json").unlink(), "vae/config.json: missing"),
        (lambda folder: (folder / "model_index.json").write_text("{"), "model_index.json: not valid JSON"),
        (
            lambda folder: (folder / "transformer/diffusion_pytorch_model.safetensors").unlink(),
            "transformer/diffusion_pytorch_model.safetensors: this file is missing",
        ),
        (
            lambda folder: (folder / "text_encoder/model.safetensors").open("r+b").truncate(9_000),
            "text_encoder/model.safetensors: truncated",
        ),
    ],
    ids=["file", "json", "weights", "truncated"],
)
def test_what_a_folder_lacks_is_seen_without_a_network(
    tmp_path: Path, harm: Callable[[Path], object], fault: str
) -> None:
    folder = tmp_path / "stable-diffusion-3.5-medium"
    shutil.copytree(EMBEDDED / "sd35", folder)
    (need,) = needs_of(tmp_path, f"model: {{path: {folder}}}")
    assert need.present
    harm(folder)
    (need,) = needs_of(tmp_path, f"model: {{path: {folder}}}")
    assert len(need.faults) == 1
    assert fault in need.faults[0]


def test_the_table_names_what_there_is() -> None:
    assert REWARDS.keys() <= BUILT_IN["reward"].keys()
    assert {bundle.parts[0].repository for bundle in FOLDERS.values()} == PUBLISHED.keys()
    assert all(PROMPTS[path].parts[0].files == (f"dataset/{path}",) for path in PROMPTS)


def write_hpsv3(folder: Path) -> dict[str, object]:
    """The files of an HPSv3, which are those that come with flowrl."""
    shutil.copytree(EMBEDDED / "hpsv3", folder, dirs_exist_ok=True)
    return {}


def write_dina(folder: Path) -> dict[str, object]:
    """The files of a DiNa-LRM, its base elsewhere."""
    return dict(dina_lrm.write(folder))


WRITERS: dict[str, Callable[[Path], dict[str, object]]] = {
    "hpsv3": write_hpsv3,
    "hpsv2": lambda folder: write_hpsv2(folder, "2.0"),
    "hpsv2_1": lambda folder: write_hpsv2(folder, "2.1"),
    "pick_score": write_pick_score,
    "clip_score": write_clip_score,
    "aesthetic": write_aesthetic,
    "image_reward": write_image_reward,
    "dina_lrm": write_dina,
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_fetched_for_a_reward_is_what_it_demands(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small checkpoint of the published layout is spread over the repositories of the table and fetched from them."""
    monkeypatch.chdir(tmp_path)
    bundle = REWARDS[name]
    options = WRITERS[name](tmp_path / "written")
    whole = Path(str(options.get("path", tmp_path / "written")))
    for part in bundle.parts:
        spread(whole, part, tmp_path / "disk" / part.repository)
    target = Path("models/clip-vit-large-patch14")
    options = {**find("reward", name).options, **options, "path": str(target)}
    in_config = {key: value for key, value in options.items() if key in ("path", "base")}
    text = f"rewards: {{train: [{{name: {name}, options: {json.dumps(in_config)}}}]}}"
    Path("run.yaml").write_text(text, encoding="utf-8")
    assert cli.main(["fetch", "run.yaml", "--from", str(tmp_path / "disk")]) == 0
    if name == "hpsv3":
        check_folder(target)
    else:
        preflight = find("reward", name).load().preflight
        parameters = preflight.__annotations__.keys() - {"return"}
        defaults = {"u": 0.4, "text_length": 0}
        preflight(**{key: value for key, value in {**defaults, **options}.items() if key in parameters})
    assert cli.main(["fetch", "run.yaml", "--check"]) == 0


def spread(whole: Path, part: Part, folder: Path) -> None:
    """Put the files of a part where its repository is; those of a vocabulary that a small tokenizer lacks are empty."""
    for name in part.files:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        source = whole / name
        file.write_bytes(source.read_bytes() if source.is_file() else b"{}")
        assert source.is_file() or name in ("vocab.json", "merges.txt", "vocab.txt", "tokenizer.json"), name
