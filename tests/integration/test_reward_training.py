"""`flowrl reward train` from a config to a reward that loads, through signals, resumptions and every option."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState
from safetensors import safe_open
from safetensors.torch import load_file

from flowrl import cli
from flowrl.base.embedded import embedded
from flowrl.base.metric_log import read_metrics
from flowrl.core.seeds import derive, evaluation_seeds
from flowrl.models.sd3 import SD3
from flowrl.types import RewardInput, TrainedOn
from rewards.data.store import PreferenceStore
from rewards.dit_reward import DiTReward
from rewards.hpsv3 import HPSv3Reward
from rewards.hpsv3.layout import WEIGHTS
from rewards.hpsv3.template import REWARD_TOKEN
from rewards.training import scoring
from tests import preference_files, tiny_store
from tests.cheap_rewards import TINY_SPACE
from tests.ranks import start

SMALL = {"optim.epochs": 0, "optim.max_steps": 4, "optim.batch_size": 8, "optim.micro_batch_size": 8}


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Processes that train in turn share nothing; these tests train many times in one."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, sd3_folder: Path) -> Path:
    """A small prepared set. Read it only."""
    return tiny_store.write_sets(tmp_path_factory.mktemp("store"), sd3_folder, train=60, validation=30)


class Trainer:
    """Runs the command on a config; `scores` are those of the last validation, which the export is centred by."""

    def __init__(self, folder: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.config = folder / "config.yaml"
        tree: dict[str, dict[str, Any]] = {}
        for key, value in settings.items():
            section, name = key.split(".")
            tree.setdefault(section, {})[name] = value
        self.config.write_text(yaml.safe_dump(tree), encoding="utf-8")
        self.scores = torch.empty(0)
        self._score_samples = scoring.score_samples
        monkeypatch.setattr(scoring, "score_samples", self._score)

    def _score(self, *args: Any, **options: Any) -> torch.Tensor:
        self.scores = self._score_samples(*args, **options)
        return self.scores

    def words(self, name: str, **changes: Any) -> list[str]:
        """The command's words; `changes` are keys with "__" for the dot."""
        overrides = [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in changes.items()]
        return ["reward", "train", str(self.config), f"run.dir={self.folder / name}", *overrides]

    def train(self, name: str = "run", **changes: Any) -> Path:
        """Train to the end."""
        assert cli.main(self.words(name, **changes)) == 0
        return self.folder / name


@pytest.fixture
def trainer(tmp_path: Path, store: Path, sd3_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    settings = {
        "model.path": str(sd3_folder),
        "model.lora_rank": 8,
        "dit_reward.layers": [0, 1],
        "dit_reward.head_dims": [16],
        "data.store": str(store),
        "data.max_sequence_length": tiny_store.T5_LENGTH,
        "optim.lr_head": 1e-2,
        "optim.lr_backbone": 3e-3,
        "eval.every": 0,
        "export.dtype": "float32",
    }
    return Trainer(tmp_path, settings | SMALL, monkeypatch)


def scores_of(folder: Path, data: PreferenceStore, rows: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
    """What the reward that was left says of samples of one shape."""
    batch = RewardInput(
        prompts=tuple(data.prompts[row] for row in data.prompt[rows].tolist()),
        seeds=seeds,
        latents=data.tensors("latents", rows),
        condition=data.conditions(data.prompt[rows]),
    )
    with torch.no_grad():
        return DiTReward(str(folder / "reward"))(batch)


def exported_scores(folder: Path, store: Path) -> torch.Tensor:
    """What the reward that was left says of all validation samples, under the validation's noise."""
    data = PreferenceStore(store / "validation")
    scores = torch.empty(len(data.shape))
    for shape in torch.unique(data.shape).tolist():
        rows = (data.shape == shape).nonzero()[:, 0]
        scores[rows] = scores_of(folder, data, rows, evaluation_seeds(data.texts(rows)))
    return scores


def files(folder: Path) -> dict[str, bytes]:
    return {
        name: (folder / "reward" / name).read_bytes()
        for name in ("reward_head.safetensors", "transformer/diffusion_pytorch_model.safetensors")
    }


def numbers(folder: Path) -> list[dict[str, float]]:
    rows = read_metrics(folder / "metrics.jsonl")
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


@pytest.mark.parametrize("mode", ["full", "lora", "frozen"])
def test_a_training_learns_and_leaves_the_reward_that_it_validated(
    trainer: Trainer, store: Path, sd3_folder: Path, mode: str
) -> None:
    folder = trainer.train(model__mode=mode, optim__max_steps=40, eval__every=10, optim__batch_size=16)
    rows = numbers(folder)
    assert [row["step"] for row in rows] == list(range(40))
    losses = [row["train/loss"] for row in rows]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    reached = json.loads((folder / "validation.json").read_text())
    assert [row["step"] for row in rows if "validation/accuracy" in row] == [9, 19, 29, 39]
    assert rows[-1]["validation/accuracy"] == reached["overall"] > 0.8
    assert reached["pairs"] == 90
    assert reached["by_source"] == {"pairs": reached["overall"]}
    # The folder that was left gives the scores of the training, centred.
    scores = exported_scores(folder, store)
    torch.testing.assert_close(scores, trainer.scores - trainer.scores.mean(), rtol=1e-3, atol=2e-3)
    assert abs(float(scores.mean())) < 2e-3
    assert trainer.scores.std() > 0.1
    # What was said to learn, learned, and nothing else.
    before = load_file(sd3_folder / "transformer" / "diffusion_pytorch_model.safetensors")
    after = load_file(folder / "reward" / "transformer" / "diffusion_pytorch_model.safetensors")
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert before.keys() == after.keys()
    if mode == "frozen":
        assert changed == set()
    if mode == "lora":
        assert changed
        assert all(".attn." in name and name.endswith(".weight") for name in changed)
    if mode == "full":
        assert "pos_embed.proj.weight" in changed
        assert not any(name.startswith(("proj_out", "norm_out")) for name in changed)
    assert "validation pairs" in (folder / "reward" / "README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "outputs"),
    [
        ({"optim__ema_decay": 0.9}, 1),
        ({"model__precision": "bfloat16"}, 1),
        ({"loss__kind": "uncertainty", "loss__draws": 20}, 2),
        ({"loss__ties": "rao_kupper"}, 1),
        ({"dit_reward__text_features": True, "dit_reward__pooling": "attention", "model__mode": "frozen"}, 1),
        ({"dit_reward__sigmas": [0.0, 0.05, 0.2], "dit_reward__feature_norm": False}, 1),
        ({"dit_reward__sigmas": [0.0, 0.2], "model__mode": "frozen", "dit_reward__text_features": True}, 1),
        ({"model__gradient_checkpointing": True, "dit_reward__activation": "silu", "dit_reward__head_dims": []}, 1),
        ({"model__init": "random", "data__share": 0.3, "optim__epochs": 1}, 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_every_option_trains_and_loads(trainer: Trainer, store: Path, changes: dict[str, Any], outputs: int) -> None:
    folder = trainer.train(**changes)
    head = load_file(folder / "reward" / "reward_head.safetensors")
    last = max(name for name in head if name.startswith("mlp.") and name.endswith(".bias"))
    assert head[last].shape == (outputs,)
    # In half precision the exported weights are exact and the training's passes were not.
    close = 0.05 if "model__precision" in changes else 2e-3
    expected = trainer.scores - trainer.scores.mean()
    torch.testing.assert_close(exported_scores(folder, store), expected, rtol=close, atol=close)
    rows = numbers(folder)
    assert len({row["train/loss"] for row in rows}) == len(rows) > 0


def test_the_average_is_what_is_validated_and_exported(trainer: Trainer) -> None:
    averaged, last = trainer.train("averaged", optim__ema_decay=0.9), trainer.train("last")
    assert [row["train/loss"] for row in numbers(averaged)] == [row["train/loss"] for row in numbers(last)]
    assert numbers(averaged)[-1]["validation/loss"] != numbers(last)[-1]["validation/loss"]
    assert files(averaged) != files(last)


def test_scores_are_centred_where_that_is_asked_for(trainer: Trainer, store: Path) -> None:
    plain = exported_scores(trainer.train("plain", export__centre=False), store)
    centred = exported_scores(trainer.train("centred"), store)
    assert abs(float(plain.mean())) > 0.01
    torch.testing.assert_close(centred, plain - plain.mean(), rtol=0, atol=1e-5)


def test_micro_batches_change_no_step(trainer: Trainer, store: Path) -> None:
    whole = trainer.train("whole", optim__batch_size=64, data__share=0.2)  # 12 comparisons: less than a batch
    parts = trainer.train("parts", optim__batch_size=64, data__share=0.2, optim__micro_batch_size=5)
    losses = [[row["train/loss"] for row in numbers(folder)] for folder in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert len(set(losses[0])) == 4
    torch.testing.assert_close(exported_scores(whole, store), exported_scores(parts, store), rtol=1e-2, atol=1e-3)


def test_a_step_is_the_loss_of_its_pairs_under_shared_noise(trainer: Trainer, tmp_path: Path) -> None:
    """Comparisons of two shapes each, and no learning: the loss of the first step can be computed from the outside."""
    rows = []
    (tmp_path / "images").mkdir()
    for row in range(6):
        names = [f"images/{row}-{height}x{width}.png" for height, width in ((64, 32), (32, 64))]
        for place, name in enumerate(names):
            height, width = ((64, 32), (32, 64))[place]
            preference_files.picture(height=height, width=width, seed=2 * row + place).save(tmp_path / name)
        better, worse = names if row % 3 else reversed(names)
        rows.append({"prompt": f"prompt {row}", "preferred": better, "rejected": worse})
    path = str(preference_files.write_json(tmp_path / "pairs.jsonl", rows))
    folder = trainer.train(
        data__store=str(tmp_path / "made"),
        data__train=[{"format": "jsonl", "path": path}],
        data__validation=[{"format": "jsonl", "path": path}],
        data__image_size=48,
        data__bucket_step=16,
        data__max_sequence_length=14,
        optim__max_steps=1,
        optim__lr_head=0.0,
        optim__lr_backbone=0.0,
    )
    made = PreferenceStore(tmp_path / "made" / "train")
    assert len(torch.unique(made.shape)) == 2
    seeds = torch.tensor([derive(0, "noise", 0, int(c)) for c in made.pairs.comparison])
    winner, loser = (
        torch.cat([scores_of(folder, made, rows[i : i + 1], seeds[i : i + 1]) for i in range(6)])
        for rows in (made.pairs.winner, made.pairs.loser)
    )
    (logged,) = numbers(folder)
    expected = torch.log1p(torch.exp(loser - winner)).mean()
    assert logged["train/loss"] == pytest.approx(float(expected), rel=1e-4)
    assert logged["train/accuracy"] == pytest.approx(float((winner > loser).float().mean()))
    assert (winner - loser).abs().min() > 1e-3


def test_where_scores_are_compared_the_samples_of_a_prompt_share_their_noise() -> None:
    seeds = evaluation_seeds(["a cat", "a dog", "a cat", "a hat"])
    assert seeds[0] == seeds[2]
    assert len(set(seeds.tolist())) == 3


def is_there(moment: Callable[[], bool], process: BaseProcess) -> bool:
    """Wait for a moment of a process; False when it ended before."""
    while process.is_alive():
        if moment():
            return True
        time.sleep(0.002)
    return False


def kill_at(moment: Callable[[], bool], process: BaseProcess, chance: random.Random) -> bool:
    """SIGKILL at a moment, or a few milliseconds after it; on a busy machine it may have ended by then."""
    if is_there(moment, process):
        time.sleep(0.005 * chance.random())
        process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def num_logged(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


INTERRUPTED = {"optim__max_steps": 24, "checkpoint__every": 3, "eval__every": 4, "optim__ema_decay": 0.5}


@pytest.fixture
def uninterrupted(trainer: Trainer) -> Path:
    return trainer.train("whole", **INTERRUPTED)


def test_a_training_that_is_killed_anywhere_goes_on_to_the_same_bytes(trainer: Trainer, uninterrupted: Path) -> None:
    folder = trainer.folder / "killed"
    chance = random.Random(0)
    moments: list[Callable[[], bool]] = [
        lambda: (folder / "config.yaml").exists(),
        lambda: num_logged(folder) >= 2,  # before there is a checkpoint
        lambda: num_logged(folder) >= 7 + chance.randrange(3),
        lambda: num_logged(folder) >= 13 + chance.randrange(3),
        lambda: (folder / "reward").exists(),  # while the reward is written
    ]
    words = trainer.words("killed", **INTERRUPTED)
    killed = 0
    for moment in moments:
        killed += kill_at(moment, start(words, trainer.folder / "said"), chance)
        words = ["reward", "train", "--resume", str(folder)]
    assert killed >= 3
    assert cli.main(words) == 0
    assert files(folder) == files(uninterrupted)
    assert numbers(folder) == numbers(uninterrupted)
    assert (folder / "validation.json").read_text() == (uninterrupted / "validation.json").read_text()
    assert cli.main(words) == 0  # once more: nothing is left to do
    assert files(folder) == files(uninterrupted)
    assert len(json.loads((folder / "env.json").read_text())) >= killed


def test_a_killed_training_on_a_frozen_backbone_goes_on_to_the_same_bytes(trainer: Trainer) -> None:
    options = {"model__mode": "frozen", "optim__max_steps": 60, "checkpoint__every": 7}
    whole, folder = trainer.train("whole", **options), trainer.folder / "killed"
    words = trainer.words("killed", **options)
    killed = 0
    for moment in (lambda: (folder / "features").exists(), lambda: num_logged(folder) >= 8):
        killed += kill_at(moment, start(words, trainer.folder / "said"), random.Random(1))
        words = ["reward", "train", "--resume", str(folder)]
    assert killed
    assert cli.main(words) == 0
    assert files(folder) == files(whole)
    assert numbers(folder) == numbers(whole)


def test_features_of_a_set_are_not_those_of_another_that_lay_there(
    trainer: Trainer, tmp_path: Path, sd3_folder: Path
) -> None:
    options = {"data__store": str(tmp_path / "sets"), "model__mode": "frozen"}
    tiny_store.write_sets(tmp_path / "sets", sd3_folder)
    folder = trainer.train(**options)
    shutil.rmtree(tmp_path / "sets")
    for seed, part in enumerate(("train", "validation")):
        space = SD3.latent_space(sd3_folder)
        tiny_store.write_set(tmp_path / "sets" / part, num_comparisons=22, latent_space=space, seed=seed)
    shutil.rmtree(folder / "checkpoints")
    shutil.rmtree(folder / "reward")
    assert cli.main(["reward", "train", "--resume", str(folder)]) == 0
    torch.testing.assert_close(
        exported_scores(folder, tmp_path / "sets"), trainer.scores - trainer.scores.mean(), rtol=1e-3, atol=1e-3
    )


def test_sigterm_saves_and_says_how_to_go_on(
    trainer: Trainer, uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, said = trainer.folder / "stopped", trainer.folder / "said"
    process = start(trainer.words("stopped", **INTERRUPTED | {"checkpoint__every": 100}), said)
    assert is_there(lambda: num_logged(folder) >= 1, process)
    process.terminate()
    process.join()
    assert process.exitcode == 1
    assert f"stopped; go on with: flowrl reward train --resume {folder}" in said.read_text()
    (saved,) = (folder / "checkpoints").iterdir()
    assert saved.name == f"step_{num_logged(folder):06d}"
    assert not (folder / "reward").exists()
    assert cli.main(["reward", "train", "--resume", str(folder), "optim.lr_head=1", "eval.every=3"]) == 2
    assert "these keys differ: optim.lr_head; drop the overrides" in one_line(capsys)
    again = ["reward", "train", "--resume", str(folder), "checkpoint.every=3", "data.encode_batch=2"]
    assert cli.main(again) == 0
    assert files(folder) == files(uninterrupted)


def test_a_folder_is_not_written_over_unless_asked(trainer: Trainer, capsys: pytest.CaptureFixture[str]) -> None:
    folder = trainer.train(run__seed=1)
    before = files(folder)
    assert cli.main(trainer.words("run")) == 2
    assert "must be new, but it holds" in capsys.readouterr().err
    assert files(folder) == before
    (folder / "notes.txt").write_text("mine")
    data = [{"format": "jsonl", "path": str(preference_files.write_jsonl(trainer.folder / "data", num=4))}]
    made = {"data__store": str(trainer.folder / "made"), "data__train": data, "data__validation": data}
    assert cli.main(trainer.words("run", **made)) == 2
    assert cli.main(["reward", "train", "--resume", str(folder), f"data.store={trainer.folder / 'made'}"]) == 2
    assert "these keys differ: data.store; drop the overrides" in one_line(capsys)
    assert not (trainer.folder / "made").exists()  # what is refused is refused before hours of preparing data
    trainer.train(run__overwrite=True)
    assert files(folder) != before
    assert (folder / "notes.txt").read_text() == "mine"
    assert len(numbers(folder)) == 4
    assert files(trainer.train("again")) == files(folder)


def damage(checkpoint: Path) -> None:
    state = checkpoint / "state.pt"
    state.write_bytes(state.read_bytes()[:-9])


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trainer.train(checkpoint__every=2)
    trained = files(folder)
    damage(folder / "checkpoints" / "step_000004")
    assert cli.main(["reward", "train", "--resume", str(folder)]) == 0
    assert "checkpoint passed over: " in (said := capsys.readouterr().err)
    assert "step_000004/state.pt is not as it was written" in said
    assert files(folder) == trained


def test_no_checkpoint_that_is_whole_stops_a_resume(trainer: Trainer, capsys: pytest.CaptureFixture[str]) -> None:
    folder = trainer.train(checkpoint__every=2)
    for checkpoint in (folder / "checkpoints").iterdir():
        damage(checkpoint)
    assert cli.main(["reward", "train", "--resume", str(folder)]) == 2
    assert "no checkpoint can be used: " in capsys.readouterr().err


def test_from_files_of_many_shapes_to_a_reward(
    trainer: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = preference_files.write_hpdv3(tmp_path / "hpdv3", num=12)
    held_out = preference_files.write_jsonl(tmp_path / "jsonl", num=8)
    changes = {
        "data__store": str(tmp_path / "made"),
        "data__train": [{"format": "hpdv3", "path": str(train), "weight": 2.0}],
        "data__validation": [{"format": "jsonl", "path": str(held_out), "name": "plain"}],
        "data__image_size": 48,
        "data__bucket_step": 16,
        "data__max_sequence_length": 14,
        "optim__max_steps": 0,
        "optim__epochs": 1,
        "optim__micro_batch_size": 2,
    }
    prepare = ["reward", "prepare", *trainer.words("run", **changes)[2:]]
    for part, message in (("0/2", "part 0/2 of"), ("1/2", "prepared: ")):
        assert cli.main([*prepare, "--part", part]) == 0
        assert message in capsys.readouterr().out
    assert cli.main([*prepare, "--part", "2/2"]) == 2
    assert "--part must read I/N with I from 0 to N-1, such as 0/8, got '2/2'" in one_line(capsys)
    folder = trainer.train(**changes)
    rows = numbers(folder)
    made = PreferenceStore(tmp_path / "made" / "train")
    assert len(torch.unique(made.shape)) == 3
    assert len(rows) == 3  # 2 x 12 comparisons; each shape's eight make a batch
    assert {"validation/source/plain", "validation/category/animal", "validation/category/other"} <= rows[-1].keys()
    left = json.loads((folder / "reward" / "config.json").read_text())
    assert left["text_length"] == 28
    assert (left["image_size"], left["bucket_step"], left["max_aspect"]) == (48, 16, 2.0)
    assert cli.main(trainer.words("other", **changes | {"data__image_size": 32})) == 2
    assert "was prepared with other data settings (buckets)" in capsys.readouterr().err


def test_hpsv3_trains_from_images_and_exports_the_published_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = {"format": "jsonl", "path": str(preference_files.write_jsonl(tmp_path / "pairs", num=8))}
    settings = {
        "model.kind": "hpsv3",
        "data.store": str(tmp_path / "made"),
        "data.train": [source],
        "data.validation": [source],
        "data.image_size": 64,
        "data.bucket_step": 32,
        "loss.kind": "uncertainty",
        "loss.ties": "soft",
        "loss.draws": 20,
        "optim.lr_head": 1e-3,
        "optim.lr_backbone": 1e-3,
        "optim.weight_decay": 0.1,
        "export.dtype": "float32",
    }
    trainer = Trainer(tmp_path, settings | SMALL, monkeypatch)
    folder = trainer.train(optim__max_steps=2)
    reward = HPSv3Reward(str(folder / "reward"))
    data = PreferenceStore(tmp_path / "made" / "validation")
    pixels = data.tensors("pixels", torch.arange(1))
    score = reward(RewardInput(prompts=(data.prompts[0],), seeds=torch.zeros(1, dtype=torch.int64), pixels=pixels))
    torch.testing.assert_close(score.detach(), (trainer.scores - trainer.scores.mean())[:1], rtol=1e-3, atol=1e-3)
    started, left = load_file(embedded("hpsv3") / WEIGHTS), load_file(folder / "reward" / WEIGHTS)
    with safe_open(folder / "reward" / WEIGHTS, framework="pt") as file:
        assert set(file.keys()) == started.keys()
    words = "model.embed_tokens.weight"
    moved = (left[words] != started[words].float()).any(1).nonzero()[:, 0].tolist()
    assert moved == [reward.tokenizer.convert_tokens_to_ids(REWARD_TOKEN)]
    assert torch.equal(left["lm_head.weight"], started["lm_head.weight"].float())
    assert not torch.equal(left["model.norm.weight"], started["model.norm.weight"].float())
    assert not torch.equal(left["visual.patch_embed.proj.weight"], started["visual.patch_embed.proj.weight"].float())
    assert cli.main(trainer.words("other", model__path="no/such")) == 2
    assert "no/such is not an HPSv3 folder: it has no HPSv3.safetensors" in one_line(capsys)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The last line of what was said, which is the only one beside progress bars."""
    said = capsys.readouterr().err
    assert "Traceback" not in said
    last = said.strip().splitlines()[-1]
    assert last.startswith("flowrl: error: ")
    return last


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dit_reward__layers": [0, 7]}, "layers (0, 7) do not exist in a transformer of 2 blocks; use 0 to 1"),
        ({"dit_reward__layers": [1, 0]}, "dit_reward: layers must be ascending block numbers from 0, got (1, 0)"),
        ({"dit_reward__sigmas": [1.0]}, "dit_reward: sigmas must be ascending noise levels in [0, 1), got (1.0,)"),
        ({"model__path": "no/such/folder"}, "no/such/folder is not a Stable Diffusion 3 folder"),
        ({"model__kind": "hpsv3", "model__path": "pocket"}, "holds latents, not pixels; prepare it again"),
        ({"data__store": "nowhere"}, "has no whole train set, and data.train names nothing to prepare it from"),
    ],
    ids=lambda value: next(iter(value.items()))[0] if isinstance(value, dict) else "",
)
def test_what_cannot_be_trained_is_one_clear_line(
    trainer: Trainer, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    assert cli.main(trainer.words("run", **changes)) == 2
    assert message in one_line(capsys)
    trainer.train("run")  # the name is still free


def test_data_that_cannot_be_used_is_one_clear_line(
    trainer: Trainer, tmp_path: Path, sd3_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("train", "validation"):
        tiny_store.write_set(tmp_path / "other" / part, num_comparisons=3, latent_space="vae4x8", seed=0)
    assert cli.main(trainer.words("a", data__store=str(tmp_path / "other"))) == 2
    assert "was prepared in the latent space 'vae4x8', but the backbone reads 'vae16x8" in one_line(capsys)
    (tmp_path / "empty.jsonl").write_text("")
    source = [{"format": "jsonl", "path": str(tmp_path / "empty.jsonl")}]
    made = {"data__store": str(tmp_path / "made"), "data__train": source, "data__validation": source}
    made["data__image_size"] = 64
    assert cli.main(trainer.words("b", **made)) == 2
    assert "empty.jsonl: no comparison is left of 0 rows" in one_line(capsys)
    assert cli.main(trainer.words("c", **made | {"data__validation": []})) == 2
    assert "has no whole validation set, and data.validation names nothing" in one_line(capsys)
    assert cli.main(trainer.words("d", **made, model__path=str(tmp_path))) == 2
    assert "is not a Stable Diffusion 3 folder: model_index.json is missing" in one_line(capsys)


def test_pairs_that_are_all_ties_are_one_clear_line(
    trainer: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = preference_files.write_jsonl(tmp_path / "ties", num=4)
    rows = [row | {"tie": True} for row in preference_files.read_rows(path)]
    ties = [{"format": "jsonl", "path": str(preference_files.write_json(path, rows)), "images": str(tmp_path / "ties")}]
    fine = [{"format": "hpdv3", "path": str(preference_files.write_hpdv3(tmp_path / "fine", num=4))}]
    sizes = {"data__image_size": 32, "data__bucket_step": 16, "data__max_sequence_length": 14}
    for name, train, validation, message in (
        ("a", ties, fine, "train: holds no pair to train on with loss.ties=drop"),
        ("b", fine, ties, "validation: holds no pair with a winner to validate on"),
    ):
        made = {"data__store": str(tmp_path / "made" / name), "data__train": train, "data__validation": validation}
        assert cli.main(trainer.words(name, **sizes, **made)) == 2
        assert message in one_line(capsys)

    # Beside another source they are named, at the start and on the model card.
    made = {"data__store": str(tmp_path / "made" / "c"), "data__train": fine, "data__validation": [*fine, *ties]}
    folder = trainer.train("c", **sizes, **made)
    assert "validation: jsonl adds nothing to the accuracy: 4 of its 4 pairs are ties" in capsys.readouterr().err
    assert json.loads((folder / "validation.json").read_text())["unmeasured"] == ["jsonl"]
    assert "- jsonl: not measured, no pair looked at has a winner" in (folder / "reward" / "README.md").read_text()


def test_a_text_length_that_differs_from_the_sets_is_refused(
    trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(trainer.words("run", data__max_sequence_length=20)) == 2
    said = one_line(capsys)
    assert "was prepared with 16 text tokens, but data.max_sequence_length asks for 34, those of CLIP and T5" in said
    assert not (trainer.folder / "run").exists()


def test_a_set_that_does_not_suit_is_refused_before_the_other_is_prepared(
    trainer: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = {"format": "jsonl", "path": str(preference_files.write_jsonl(tmp_path / "data", num=4))}
    changes = {"data__store": str(tmp_path / "made"), "data__validation": [source], "data__max_sequence_length": 14}
    train = tmp_path / "made" / "train"
    for space, says in (
        (TINY_SPACE, "train: was prepared with 16 text tokens, but data.max_sequence_length asks for 28"),
        ("vae4x8", f"train: was prepared in the latent space 'vae4x8', but the backbone reads '{TINY_SPACE}'"),
    ):
        tiny_store.write_set(train, num_comparisons=3, latent_space=space, seed=0)
        for command in ("train", "prepare"):
            assert cli.main(["reward", command, *trainer.words("run", **changes)[2:]]) == 2
            assert says in one_line(capsys)
    assert not (tmp_path / "made" / "validation").exists()
    assert not (tmp_path / "run").exists()


def test_a_reward_without_a_backbone_finds_its_base_from_everywhere(
    trainer: Trainer, sd3_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sd3_folder.parent)
    folder = trainer.train(model__path=sd3_folder.name, model__mode="lora", export__whole=False, optim__max_steps=1)
    left = json.loads((folder / "reward" / "config.json").read_text())
    assert left["base"] == str(sd3_folder.resolve())
    assert (left["image_size"], left["bucket_step"], left["max_aspect"]) == (0, 0, 0)  # the set does not say it
    monkeypatch.chdir(tmp_path)
    trained = DiTReward.preflight(path=str(folder / "reward"), base="")
    assert trained == TrainedOn(latent_space=TINY_SPACE, text_length=16)


def test_the_end_says_how_good_the_reward_is(trainer: Trainer, capsys: pytest.CaptureFixture[str]) -> None:
    folder = trainer.train()
    last = capsys.readouterr().out.splitlines()[-3:]
    reached = json.loads((folder / "validation.json").read_text())
    assert last[0].startswith(f"{100 * reached['overall']:.1f} % of {reached['pairs']:,} validation pairs in the right")
    check = f"try it: flowrl reward check dit_reward path={folder}/reward --text 16x96x80"
    assert last[1:] == [check, f"reward: {folder}/reward"]


def test_a_config_that_was_edited_in_the_folder_is_noticed(
    trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trainer.train(checkpoint__every=2)
    begun = folder / "config.yaml"
    begun.write_text(begun.read_text().replace("clip_norm: 1.0", "clip_norm: 9.0"))
    assert cli.main(["reward", "train", "--resume", str(folder)]) == 2
    assert "was made with other values of optim.clip_norm; put them back" in one_line(capsys)


def small_sources(root: Path, **parts: Path) -> dict[str, Any]:
    """The changes to a config that make its sets from files of pairs."""
    sources = {f"data__{part}": [{"format": "jsonl", "path": str(path)}] for part, path in parts.items()}
    sizes = {"data__image_size": 32, "data__bucket_step": 16, "data__max_sequence_length": 14}
    return {"data__store": str(root / "made"), "optim__max_steps": 2} | sources | sizes


def test_sources_that_changed_since_are_refused_but_by_what_had_begun(
    trainer: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = preference_files.write_jsonl(tmp_path / "data", num=8)
    held_out = preference_files.write_jsonl(tmp_path / "held", num=4, seed=5)
    changes = small_sources(tmp_path, train=train, validation=held_out)
    folder = trainer.train(**changes)
    rows = preference_files.read_rows(train)
    swapped = [row | {"preferred": row["rejected"], "rejected": row["preferred"]} for row in rows]
    preference_files.write_json(train, swapped)
    for words in (trainer.words("b", **changes), ["reward", "prepare", *trainer.words("b", **changes)[2:]]):
        assert cli.main(words) == 2
        assert f"made/train: {train} has changed since this set was prepared; remove it" in one_line(capsys)
    shutil.rmtree(folder / "reward")
    assert cli.main(["reward", "train", "--resume", str(folder)]) == 0
    trainer.train("c", **changes | {"data__train": []})  # as the message says
    shutil.rmtree(tmp_path / "made" / "train")
    trainer.train("d", **changes)


@pytest.mark.parametrize("part", ["train", "validation"])
def test_a_training_goes_on_with_the_sets_it_began_with_alone(
    trainer: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    sources = {
        "train": preference_files.write_jsonl(tmp_path / "data", num=8),
        "validation": preference_files.write_jsonl(tmp_path / "held", num=4, seed=5),
    }
    folder = trainer.train(**small_sources(tmp_path, **sources) | {"optim__max_steps": 4, "checkpoint__every": 2})
    trained, rows = files(folder), preference_files.read_rows(sources[part])
    shutil.rmtree(folder / "checkpoints" / "step_000004")
    flipped = rows[0] | {"preferred": rows[0]["rejected"], "rejected": rows[0]["preferred"]}
    preference_files.write_json(sources[part], [flipped, *rows[1:]])
    shutil.rmtree(tmp_path / "made" / part)
    resume = ["reward", "train", "--resume", str(folder)]
    assert cli.main(resume) == 2
    said = one_line(capsys)
    assert f"made/{part}: is not the set that {folder}/checkpoints/step_000002 was made on: pairs, prompts or" in said
    assert files(folder) == trained

    # As the message says: from the sources as they were it is the same set.
    preference_files.write_json(sources[part], rows)
    shutil.rmtree(tmp_path / "made" / part)
    assert cli.main(resume) == 0
    assert files(folder) == trained


def test_a_set_that_is_gone_is_made_again_beside_one_whose_sources_changed(trainer: Trainer, tmp_path: Path) -> None:
    train = preference_files.write_jsonl(tmp_path / "data", num=8)
    held_out = preference_files.write_jsonl(tmp_path / "held", num=4, seed=5)
    folder = trainer.train(**small_sources(tmp_path, train=train, validation=held_out))
    trained = files(folder)
    preference_files.write_json(train, preference_files.read_rows(train)[1:])
    shutil.rmtree(tmp_path / "made" / "validation")
    shutil.rmtree(folder / "reward")
    assert cli.main(["reward", "train", "--resume", str(folder)]) == 0
    assert files(folder) == trained


def test_a_checkpoint_that_names_no_sets_is_refused(trainer: Trainer, capsys: pytest.CaptureFixture[str]) -> None:
    folder = trainer.train(checkpoint__every=4)
    saved = folder / "checkpoints" / "step_000004"
    (saved / "sets.json").unlink()
    manifest = json.loads((saved / "MANIFEST.json").read_text())
    del manifest["files"]["sets.json"]
    (saved / "MANIFEST.json").write_text(json.dumps(manifest))
    assert cli.main(["reward", "train", "--resume", str(folder)]) == 2
    assert "step_000004: does not say which sets it was made on: it has no sets.json; train anew" in one_line(capsys)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            {"data__image_size": 512, "data__bucket_step": 64},
            "data.image_size=512 with data.max_aspect=2 makes images of 704 pixels on a side, but {path} reads at most "
            "64; set data.image_size=64",
        ),
        (
            {"data__image_size": 64, "data__bucket_step": 16},
            "data.image_size=64 with data.max_aspect=2 makes images of 80 pixels on a side, but {path} reads at most "
            "64; set data.image_size=48 or data.max_aspect=1",
        ),
        (
            {"data__image_size": 512, "data__bucket_step": 128},
            "data.image_size=512 with data.max_aspect=2 makes images of 640 pixels on a side, but {path} reads at most "
            "64; set data.bucket_step and data.image_size to 64 or less",
        ),
    ],
)
@pytest.mark.parametrize("command", ["train", "prepare"])
def test_images_that_the_backbone_cannot_read_are_refused_before_any_is_encoded(
    trainer: Trainer,
    tmp_path: Path,
    sd3_folder: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    sizes: dict[str, int],
    message: str,
) -> None:
    data = preference_files.write_jsonl(tmp_path / "data", num=4)
    changes = small_sources(tmp_path, train=data, validation=data) | sizes
    assert cli.main(["reward", command, *trainer.words("run", **changes)[2:]]) == 2
    assert one_line(capsys).endswith(message.format(path=sd3_folder))
    assert not (tmp_path / "made").exists()


def test_a_set_of_images_that_the_backbone_cannot_read_is_refused_before_it_is_loaded(
    trainer: Trainer,
    tmp_path: Path,
    sd3_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tiny_store, "SHAPES", ((16, 4, 4), (16, 4, 10)))
    store = tiny_store.write_sets(tmp_path / "sets", sd3_folder)
    assert cli.main(trainer.words("run", data__store=str(store))) == 2
    assert (
        f"sets/train: holds images of 80 pixels on a side, but {sd3_folder} reads at most 64; prepare another set"
    ) in one_line(capsys)
    assert not (tmp_path / "run").exists()


def test_rates_that_are_too_high_end_with_advice_that_works(
    trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(trainer.words("run", optim__lr_head=1e30, optim__warmup_ratio=0, optim__max_steps=8)) == 2
    said = one_line(capsys)
    assert "begin a new training with a lower optim.lr_backbone or optim.lr_head" in said
    assert "go on from the last checkpoint" not in said
    assert cli.main(["reward", "train", "--resume", str(trainer.folder / "run"), "optim.lr_head=1e-2"]) == 2
    trainer.train("run", run__overwrite=True)


def test_validation_pairs_that_are_trained_on_are_said(
    trainer: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = preference_files.write_jsonl(tmp_path / "data", num=8)
    rows = preference_files.read_rows(pairs)
    decided = len([row for row in rows if not row.get("tie")])
    folder = trainer.train("run", **small_sources(tmp_path, train=pairs, validation=pairs))
    said = f"{decided} of the {decided} validation pairs are also trained on"
    assert f"made/validation: {said}" in capsys.readouterr().err
    assert said in (folder / "reward" / "README.md").read_text()
    assert json.loads((folder / "validation.json").read_text())["shared_pairs"] == decided
    others = [row | {"prompt": f"other {row['prompt']}"} for row in rows]
    held_out = preference_files.write_json(tmp_path / "data" / "other.jsonl", others)
    changes = small_sources(tmp_path, train=pairs, validation=held_out) | {"data__store": str(tmp_path / "others")}
    folder = trainer.train("apart", **changes)
    assert "also trained on" not in capsys.readouterr().err
    assert "also trained on" not in (folder / "reward" / "README.md").read_text()
    reached = json.loads((folder / "validation.json").read_text())
    assert (reached["shared_prompts"], reached["shared_pairs"]) == (0, 0)


@pytest.mark.parametrize("mode", ["full", "frozen"])
@pytest.mark.parametrize("part", ["train", "validation"])
def test_a_damaged_shard_is_named_and_the_rates_are_not_blamed(
    trainer: Trainer, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str, part: str
) -> None:
    shutil.copytree(store, tmp_path / "sets")
    shard = tmp_path / "sets" / part / "samples" / "00001.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-2000] + b"\xff" * 2000)
    changes = {"data__store": str(tmp_path / "sets"), "model__mode": mode, "optim__max_steps": 20}
    assert cli.main(trainer.words("run", **changes)) == 2
    said = one_line(capsys)
    assert f"{shard}: damaged: row " in said
    assert "optim.lr" not in said
    shard.write_bytes(whole)
    assert cli.main(["reward", "train", "--resume", str(trainer.folder / "run")]) == 0
