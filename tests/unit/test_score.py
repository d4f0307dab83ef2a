"""Scoring from the shell: what is read and in which order, what each reward is given, and what is written."""

from __future__ import annotations

import csv
import io
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file, save_file

from flowrl import cli
from flowrl.base.embedded import embedded
from flowrl.core.seeds import evaluation_seeds
from flowrl.models.latent_inputs import EncoderSetting
from flowrl.models.sd3 import SD3
from flowrl.score.command import read_reward
from flowrl.score.inputs import InputError, find_files, image_samples, read_image
from flowrl.score.policy_parts import PolicyParts
from flowrl.score.prompts import read_prompts
from flowrl.score.run import LabelledReward, score
from flowrl.types import RewardInput
from rewards.data.comparison import ImageRef
from rewards.data.images import ImageReader
from rewards.dit_reward import DiTReward
from rewards.dit_reward.pixels import DiTRewardPixels
from tests import tiny
from tests.cheap_rewards import BRIGHT, LATENT, Brightness

SEEDS = "tests.cheap_rewards:SeedEcho"
TEXTS = list(tiny.TEXTS[:2])
NOWHERE = EncoderSetting(family=SD3(), path=Path("nowhere"), max_sequence_length=14, dtype=torch.float32, device="cpu")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save_image(name: str, seed: int = 0, height: int = 32, width: int = 32) -> torch.Tensor:
    """Write an image of random pixels and return them: [3, H, W] in [0, 1]."""
    pixels = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed))
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.byte().numpy()).save(path)
    return pixels.permute(2, 0, 1).float() / 255


def latents_of(count: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(count, *tiny.SHAPE, generator=torch.Generator().manual_seed(seed))


def scored(*words: str, code: int = 0) -> list[dict[str, str]]:
    """Run the command; the rows of its table."""
    assert cli.main(["score", *words, "--device", "cpu", "--out", "out.csv"]) == code
    return list(csv.DictReader(io.StringIO(Path("out.csv").read_text(encoding="utf-8"))))


def test_a_line_of_the_prompt_file_belongs_to_the_image_at_its_place_in_natural_order() -> None:
    for number in (10, 2, 1):
        save_image(f"images/img{number}.png", number)
    Path("prompts.txt").write_text("a\nbb\nccc\n", encoding="utf-8")
    rows = scored("--reward", SEEDS, "images", "--prompts", "prompts.txt")
    assert [row["file"] for row in rows] == ["images/img1.png", "images/img2.png", "images/img10.png"]
    assert [row["prompt"] for row in rows] == ["a", "bb", "ccc"]
    seeds = evaluation_seeds(["a", "bb", "ccc"]) % 1000
    expected = [seed + length / 1000 for seed, length in zip(seeds.tolist(), (1, 2, 3), strict=True)]
    assert [float(row["SeedEcho"]) for row in rows] == pytest.approx(expected, abs=1e-4)


def test_named_files_keep_their_order_and_those_of_a_folder_are_in_natural_order() -> None:
    for name in ("rgb.png", "grey.png", "folder/10.png", "folder/9.png"):
        save_image(name)
    Path("prompts.txt").write_text("a\nbb\nccc\ndddd\n", encoding="utf-8")
    rows = scored("--reward", SEEDS, "rgb.png", "folder", "grey.png", "--prompts", "prompts.txt")
    assert [(row["file"], row["prompt"]) for row in rows] == [
        ("rgb.png", "a"),
        ("folder/9.png", "bb"),
        ("folder/10.png", "ccc"),
        ("grey.png", "dddd"),
    ]


def test_images_of_different_sizes_are_scored_in_batches_and_written_in_order() -> None:
    sizes = [(32, 32), (16, 48), (32, 32), (32, 32), (16, 48), (8, 8)]  # batches of two, of one size each
    images = [save_image(f"{index}.png", index, *size) for index, size in enumerate(sizes)]
    rows = scored("--reward", BRIGHT, *(f"{index}.png" for index in range(6)), "--prompt", "x")
    assert [float(row["Brightness"]) for row in rows] == pytest.approx([i.mean().item() for i in images], abs=1e-6)


def test_no_image_is_read_before_its_batch() -> None:
    for number in range(6):
        save_image(f"{number}.png", number)
    samples = image_samples(find_files([Path()], (".png",)))
    policy = PolicyParts(NOWHERE)
    rewards = [LabelledReward(label="b", reward=Brightness())]  # two at a time
    results = score(samples, ["x"] * 6, rewards, policy, kind="pixel", with_pixels=False)
    assert next(results).row.scores[0] is not None
    for number in range(6):
        Path(f"{number}.png").unlink()
    assert [one.row.scores[0] is None for one in results] == [False, True, True, True, True]


def test_several_rewards_have_a_column_each_with_their_own_options() -> None:
    image = save_image("a.png")
    rows = scored("a.png", "--reward", BRIGHT, "--reward", f"dark={BRIGHT} sign=-1", "--prompt", "x")
    assert list(rows[0]) == ["file", "prompt", "Brightness", "dark"]
    assert [float(rows[0][name]) for name in ("Brightness", "dark")] == pytest.approx(
        [image.mean().item(), -image.mean().item()], abs=1e-6
    )


def test_a_broken_image_is_a_row_without_a_score_named_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    save_image("1.png")
    Path("2.png").write_bytes(Path("1.png").read_bytes()[:500])
    Path("3.png").write_text("no image", encoding="utf-8")
    Image.new("I;16", (8, 8)).save("4.png")
    rows = scored("--reward", BRIGHT, "1.png", "2.png", "3.png", "4.png", "--prompt", "x", code=1)
    assert [row["Brightness"] == "" for row in rows] == [False, True, True, False]
    said = capsys.readouterr().err
    assert "2.png: cannot be read: " in said
    assert "3.png: cannot be read: not an image of a known kind" in said
    assert said.endswith("flowrl score: 2 of 4 samples lack a score\n")


def test_what_cannot_be_scored_is_null_in_json_lines() -> None:
    for number in range(2):
        save_image(f"{number}.png", number)
    words = ["--reward", f"{LATENT} nan_every=2", "--prompt", "caf\u00e9", "--model", "pocket"]
    space = "latent_space=" + SD3.latent_space(embedded("sd35"))
    words[1] += f" {space}"
    assert cli.main(["score", "0.png", "1.png", *words, "--out", "out.jsonl"]) == 1
    rows = [json.loads(line) for line in Path("out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["file"], row["prompt"]) for row in rows] == [("0.png", "caf\u00e9"), ("1.png", "caf\u00e9")]
    assert rows[0]["LatentNorm"] is None
    assert isinstance(rows[1]["LatentNorm"], float)


def test_a_latent_reward_reads_images_through_the_vae_of_the_policy(sd3_folder: Path) -> None:
    image = save_image("a.png", 3, 32, 48)
    rows = scored("--reward", LATENT, "a.png", "--prompt", "x", "--model", str(sd3_folder))
    vae = AutoencoderKL.from_pretrained(sd3_folder / "vae")
    with torch.no_grad():
        mean = vae.encode(image[None] * 2 - 1).latent_dist.mean
    latents = (mean - 0.0609) * 1.5305
    expected = -(latents - 0.5).square().mean().sqrt().item()
    assert float(rows[0]["LatentNorm"]) == pytest.approx(expected, rel=1e-5)


def test_an_image_without_latents_keeps_its_other_scores(sd3_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_image("a.png", 3, 32, 40)
    words = ["--reward", LATENT, "--reward", BRIGHT, "a.png", "--prompt", "x", "--model", str(sd3_folder)]
    [row] = scored(*words, code=1)
    assert row["LatentNorm"] == ""
    assert float(row["Brightness"]) > 0
    assert "an image of 40 x 32 pixels has no latents: width and height must be multiples of 16" in (
        capsys.readouterr().err
    )


def test_latents_are_scored_as_they_are_and_decoded_for_pixel_rewards(sd3_folder: Path) -> None:
    latents = latents_of(3)
    save_file({"latents": latents, "seeds": torch.tensor([7, 8, 9])}, "a.safetensors")
    save_file({"latents": latents[0]}, "b.safetensors")
    words = [word for name in (LATENT, BRIGHT, SEEDS) for word in ("--reward", name)]
    rows = scored("--latents", ".", "--prompt", "xy", "--model", str(sd3_folder), *words)
    assert [row["file"] for row in rows] == [*(f"a.safetensors#{row}" for row in range(3)), "b.safetensors"]
    both = torch.cat([latents, latents[:1]])
    norms = -(both - 0.5).square().flatten(1).mean(1).sqrt()
    assert [float(row["LatentNorm"]) for row in rows] == pytest.approx(norms.tolist(), rel=1e-6)
    pixels = SD3.load_decoder(sd3_folder, device="cpu").decode(both)
    assert [float(row["Brightness"]) for row in rows] == pytest.approx(pixels.flatten(1).mean(1).tolist(), abs=1e-6)
    seeds = [7, 8, 9, evaluation_seeds(["xy"]).item() % 1000]
    assert [float(row["SeedEcho"]) for row in rows] == pytest.approx([seed + 0.002 for seed in seeds], abs=1e-4)


def test_a_dit_reward_gets_the_text_condition_of_the_policy_and_the_seed(sd3_folder: Path, tmp_path: Path) -> None:
    folder = tiny.write_reward(tmp_path / "reward", sd3_folder)
    save_file(
        {"latents": latents_of(2), "seeds": torch.tensor([7, 8])}, "a.safetensors", {"prompts": json.dumps(TEXTS)}
    )
    words = ["--model", str(sd3_folder), "--max-sequence-length", "14"]
    rows = scored("--latents", "a.safetensors", "--reward", f"dit_reward path={folder}", *words)
    reward = DiTReward(path=str(folder))
    for row, text, latents, seed in zip(rows, TEXTS, latents_of(2), (7, 8), strict=True):
        [condition] = tiny.conditions(sd3_folder, text)
        batch = RewardInput(prompts=(text,), seeds=torch.tensor([seed]), latents=latents[None], condition=condition)
        assert row["prompt"] == text
        assert float(row["dit_reward"]) == pytest.approx(reward(batch).item(), abs=1e-5)


def test_a_reward_that_refuses_one_sample_scores_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        save_image(f"{number}.png", number, 64, 64)
    Path("p.txt").write_text("a large red circle on sand\na cat\na large red circle on sand\n", encoding="utf-8")
    rows = scored("--reward", "oracle", "0.png", "1.png", "2.png", "--prompts", "p.txt", code=1)
    assert [row["oracle"] == "" for row in rows] == [False, True, False]
    assert "1.png: reward 'oracle' refuses its batch: prompt 'a cat' is not in the pocket" in capsys.readouterr().err


class EndsAt(Brightness):
    """Scores two images in a call, and ends at the call `at`: by a failure of its own, by Ctrl-C or by SIGTERM."""

    def __init__(self, device: str = "cpu", at: int = 3, by: str = "failure") -> None:
        super().__init__()
        self.left, self.by = at, by

    def __call__(self, batch: RewardInput) -> torch.Tensor:
        self.left -= 1
        if not self.left and self.by == "signal":
            signal.raise_signal(signal.SIGTERM)
        if not self.left:
            raise {"user": KeyboardInterrupt(), "exit": SystemExit(0)}.get(self.by, RuntimeError("no judge"))
        return super().__call__(batch)


ENDS = {
    "failure": (2, "flowrl: error: reward 'brightness' "),
    "exit": (2, "flowrl: error: reward 'brightness' "),
    "user": (130, "flowrl: interrupted"),
    "signal": (143, "flowrl: stopped by SIGTERM"),
}


@pytest.mark.parametrize("by", ENDS)
def test_what_was_scored_before_an_end_is_written_beside_the_table(by: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, last = ENDS[by]
    sizes = [(8, 8), (32, 32), (8, 8), (8, 8), (32, 32)]  # in the order of scoring: 0, 2; 3; 1, 4
    images = [save_image(f"{index}.png", index, *size) for index, size in enumerate(sizes)]
    words = ["score", ".", "--prompt", "x", "--device", "cpu", "--out", "out.csv", "--sheet", "sheet.png"]
    Path("out.csv").write_text("an older table")
    assert cli.main([*words, "--reward", f"bright={__name__}:EndsAt by={by}"]) == code
    assert Path("out.csv").read_text() == "an older table"
    assert not Path("sheet.png").exists()
    rows = list(csv.DictReader(io.StringIO(Path("out.partial.csv").read_text(encoding="utf-8"))))
    assert [row["file"] for row in rows] == ["0.png", "2.png", "3.png"]
    assert [float(row["bright"]) for row in rows] == pytest.approx([images[i].mean().item() for i in (0, 2, 3)])
    said = capsys.readouterr().err.splitlines()
    assert said[-2] == (
        "flowrl score: stopped; out.partial.csv holds 3 of 5 samples; out.csv is left as it was; "
        "no contact sheet is made"
    )
    assert said[-1].startswith(last)


def test_an_end_before_anything_was_scored_leaves_an_older_table(capsys: pytest.CaptureFixture[str]) -> None:
    save_image("0.png")
    before = scored("0.png", "--reward", BRIGHT, "--prompt", "x")
    assert scored("0.png", "--reward", f"Brightness={__name__}:EndsAt at=1", "--prompt", "x", code=2) == before
    assert "holds" not in capsys.readouterr().err


def test_encoders_that_cannot_be_loaded_are_an_error_and_no_fault_of_an_image(
    sd3_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(sd3_folder, tmp_path / "copy")
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors.pop("encoder.conv_in.weight")
    save_file(tensors, file, metadata={"format": "pt"})
    save_image("0.png")
    assert cli.main(["score", "0.png", "--reward", LATENT, "--prompt", "x", "--model", str(folder)]) == 2
    said = "its tensors are not those of the model: missing encoder.conv_in.weight, unexpected none"
    assert f"error: --model: {folder / 'vae'}: {said}" in capsys.readouterr().err


def test_scores_are_the_same_each_time_and_wherever_the_files_lie() -> None:
    for number in range(3):
        save_image(f"one/{number}.png", number, 64, 64)
    Path("one/p.txt").write_text("a\nb\nc\n", encoding="utf-8")
    words = ["--reward", "dit_reward", "--reward", SEEDS, "--prompts"]
    first = scored("one", *words, "one/p.txt")
    Path("one").rename("two")
    second = scored("two", *words, "two/p.txt")
    assert [list(row.values())[1:] for row in first] == [list(row.values())[1:] for row in second]


def test_an_image_is_read_as_for_training_upright_on_white_and_of_16_bits() -> None:
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save("clear.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (6, 4), (255, 0, 0)).save("turned.png", exif=exif)
    Image.fromarray(np.full((4, 4), 32768, np.uint16)).save("deep.png")
    samples = image_samples([Path(name) for name in ("clear.png", "turned.png", "deep.png")])
    assert [sample.shape for sample in samples] == [(3, 4, 4), (3, 6, 4), (3, 4, 4)]
    for sample in samples:
        assert torch.equal(read_image(sample), ImageReader().pixels(ImageRef(path=str(sample.path))).float() / 255)
    assert read_image(samples[0]).unique().tolist() == [1.0]


def test_images_of_one_prompt_share_their_seed_whatever_they_are_called() -> None:
    for name in ("one.png", "two.png", "other.png"):
        save_image(name)
    Path("p.csv").write_text("file,prompt\none.png,a\ntwo.png,a\nother.png,b\n", encoding="utf-8")
    rows = scored("--reward", SEEDS, "one.png", "two.png", "other.png", "--prompts", "p.csv")
    found = {row["file"]: row["SeedEcho"] for row in rows}
    assert found["one.png"] == found["two.png"] != found["other.png"]


def test_an_image_has_the_score_of_dit_reward_pixels_and_is_brought_to_a_bucket(
    sd3_folder: Path, tmp_path: Path
) -> None:
    folder = tiny.write_reward(tmp_path / "reward", sd3_folder)
    image = save_image("a.png", 3, 40, 41)
    words = ["--reward", f"dit_reward path={folder}", "a.png", "--prompt", TEXTS[0], "--model", str(sd3_folder)]
    words += ["--max-sequence-length", "14"]
    [row] = scored(*words, "--image-size", "64")
    reward = DiTRewardPixels(path=str(folder), encoders=str(sd3_folder), image_size=64)
    batch = RewardInput(prompts=(TEXTS[0],), seeds=evaluation_seeds(TEXTS[:1]), pixels=image[None])
    assert float(row["dit_reward"]) == pytest.approx(reward(batch).item(), abs=1e-5)
    [row] = scored(*words, code=1)  # a reward that does not know the sizes of its training takes images as they are
    assert row["dit_reward"] == ""


def sized_reward(folder: Path, sd3_folder: Path, **images: float) -> Path:
    """A DiT-Reward that says what images it was trained on."""
    config = tiny.write_reward(folder, sd3_folder) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | images))
    return folder


def test_images_are_brought_to_the_sizes_of_the_rewards_training(
    sd3_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sized_reward(tmp_path / "reward", sd3_folder, image_size=48, bucket_step=16, max_aspect=1)
    image = save_image("a.png", 3, 40, 41)
    words = ["--reward", f"mine=dit_reward path={folder}", "a.png", "--prompt", TEXTS[0], "--model", str(sd3_folder)]
    words += ["--max-sequence-length", "14"]
    batch = RewardInput(prompts=(TEXTS[0],), seeds=evaluation_seeds(TEXTS[:1]), pixels=image[None])
    [row] = scored(*words)
    assert float(row["mine"]) == pytest.approx(
        DiTRewardPixels(path=str(folder), encoders=str(sd3_folder))(batch).item(), abs=1e-5
    )
    assert "mine was trained on" not in capsys.readouterr().err
    [row] = scored(*words, "--image-size", "32", "--bucket-step", "32", "--max-aspect", "2")
    other = DiTRewardPixels(path=str(folder), encoders=str(sd3_folder), image_size=32, bucket_step=32, max_aspect=2)
    assert float(row["mine"]) == pytest.approx(other(batch).item(), abs=1e-5)
    [line] = [line for line in capsys.readouterr().err.splitlines() if "was trained on" in line]
    assert line == (
        "flowrl score: mine was trained on images of about 48 x 48 in buckets of 16 up to 1:1; it gets images of about "
        "32 x 32 in buckets of 32 up to 2:1"
    )


def test_a_reward_that_gets_latents_of_other_sizes_than_its_training_is_named(
    sd3_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sized_reward(tmp_path / "reward", sd3_folder, image_size=16, bucket_step=16, max_aspect=1)
    save_file({"latents": latents_of(2)}, "a.safetensors")
    words = ["--latents", "a.safetensors", "--reward", f"mine=dit_reward path={folder}", "--prompt", TEXTS[0]]
    words += ["--model", str(sd3_folder), "--max-sequence-length", "14"]
    assert len(scored(*words)) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if "trained on" in line]
    assert line == (
        "flowrl score: mine was trained on images of about 16 x 16 in buckets of 16 up to 1:1; it gets latents of "
        "images of 32 x 32"
    )
    sized_reward(folder, sd3_folder, image_size=32, bucket_step=16, max_aspect=1)
    assert len(scored(*words)) == 2
    assert "trained on" not in capsys.readouterr().err


def test_a_size_below_the_step_of_the_rewards_training_is_said_in_flags(
    sd3_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sized_reward(tmp_path / "reward", sd3_folder, image_size=64, bucket_step=64, max_aspect=1)
    save_image("a.png")
    words = ["score", "a.png", "--prompt", "x", "--model", str(sd3_folder), "--max-sequence-length", "14"]
    assert cli.main([*words, "--reward", f"dit_reward path={folder}", "--image-size", "24"]) == 2
    assert capsys.readouterr().err == (
        "flowrl: error: --image-size must be at least --bucket-step = 64, the shortest side of a bucket, got 24\n"
    )


def test_latents_larger_than_a_rewards_positions_are_refused_in_its_own_words(
    sd3_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny.write_reward(tmp_path / "reward", sd3_folder)
    save_file({"latents": torch.zeros(1, 16, 16, 8)}, "a.safetensors", {"prompts": '["x"]'})
    words = ["--model", str(sd3_folder), "--max-sequence-length", "14", "--reward", f"dit_reward path={folder}"]
    [row] = scored("--latents", "a.safetensors", *words, code=1)
    assert row["dit_reward"] == ""
    assert (
        "has positions for latents of at most 8 x 8 (images of 64 x 64 pixels), got latents of 8 x 16; "
        "give it smaller ones"
    ) in capsys.readouterr().err


def test_rewards_that_were_trained_on_other_sizes_need_a_choice(
    sd3_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_image("a.png", 3, 32, 32)
    words = ["a.png", "--prompt", TEXTS[0], "--model", str(sd3_folder), "--max-sequence-length", "14"]
    for name, size in (("one", 32), ("two", 48)):
        folder = sized_reward(tmp_path / name, sd3_folder, image_size=size, bucket_step=16, max_aspect=1)
        words += ["--reward", f"{name}=dit_reward path={folder}"]
    assert cli.main(["score", *words, "--device", "cpu"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "one was trained on images of about 32 x 32 in buckets of 16 up to 1:1, two on images of about 48" in line
    assert line.endswith(
        "say which with --image-size, --bucket-step and --max-aspect, or take the rewards one at a time"
    )
    [row] = scored(*words, "--image-size", "32")
    assert row["one"] == row["two"] != ""


@pytest.mark.parametrize("kind", ["images", "latents"])
def test_another_text_length_than_a_rewards_is_one_error_before_anything_is_scored(
    kind: str, sd3_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny.write_reward(tmp_path / "reward", sd3_folder)
    save_image("a.png")
    save_file({"latents": latents_of(3)}, "a.safetensors")
    words = ["--reward", f"dit_reward path={folder}", "--prompt", "x", "--model", str(sd3_folder)]
    words += ["a.png"] if kind == "images" else ["--latents", "a.safetensors"]
    assert cli.main(["score", *words, "--device", "cpu", "--out", "out.csv"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert (
        "rewards: 'dit_reward' was trained on texts of 28 tokens, but gets 270 with --max-sequence-length 256; set "
        "--max-sequence-length to 14"
    ) in line
    assert not Path("out.csv").exists()


def test_latents_of_other_channels_are_one_error_before_anything_is_scored(
    sd3_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"latents": latents_of(2)}, "a.safetensors")
    save_file({"latents": latents_of(2)[:, :4].contiguous()}, "b.safetensors")
    words = ["--latents", ".", "--reward", LATENT, "--prompt", "x", "--model", str(sd3_folder)]
    assert cli.main(["score", *words, "--device", "cpu", "--out", "out.csv"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert (
        "b.safetensors: holds latents [2, 4, 4, 4] of 4 channels, but the policy's have 16; name with --model" in line
    )
    assert not Path("out.csv").exists()


def test_a_sheet_shows_what_was_scored_best_first(sd3_folder: Path) -> None:
    Image.new("RGB", (32, 32), (0, 0, 90)).save("dark.png")
    Image.new("RGB", (32, 32), (0, 255, 0)).save("light.png")
    Path("torn.png").write_bytes(b"x")
    scored("--reward", BRIGHT, ".", "--prompt", "x", "--sheet", "sheet.png", code=1)
    with Image.open("sheet.png") as sheet:
        assert [sheet.getpixel((100 + 200 * column, 120)) for column in (0, 1)] == [(0, 255, 0), (0, 0, 90)]
        assert sheet.size[0] == 408  # the torn one is not on it


def test_the_table_goes_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (8, 8), (255, 255, 255)).save("a,b.png")
    assert cli.main(["score", "--reward", BRIGHT, "a,b.png", "--prompt", 'say "hi"']) == 0
    assert capsys.readouterr().out == 'file,prompt,Brightness\n"a,b.png","say ""hi""",1\n'


def test_prompts_are_found_by_name_in_tables_and_need_not_be_in_order() -> None:
    for name in ("x/1.png", "y/1.png", "y/2.png"):
        save_image(name)
    samples = image_samples(find_files([Path("x"), Path("y")], (".png",)))
    rows = [("y/2.png", "c"), ("x/1.png", "a"), ("other.png", "unused"), ("y/1.png", "b, too")]
    Path("p.jsonl").write_text("".join(json.dumps({"file": f, "prompt": p}) + "\n" for f, p in rows), encoding="utf-8")
    with Path("p.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("prompt", "file"), *((p, f) for f, p in rows)])
    for name in ("p.jsonl", "p.csv"):
        assert read_prompts(Path(name), samples) == ["a", "b, too", "c"]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("p.txt", "one\ntwo\n", "must hold one line per sample, but it has 2 and there are 3 samples, from x/1.png to"),
        ("p.txt", "", "it has 0 and there are 3 samples"),
        ("p.jsonl", '{"file": "1.png", "prompt": "a"}', "1 of 3 samples stand in none of its 1 rows, the first is y/2"),
        (
            "p.jsonl",
            '{"file": "1.png", "prompt": "a"}\n{"file": "2.png", "prompt": "a"}',
            "line 1 may mean x/1.png or y/1.png; write more of the path",
        ),
        (
            "p.csv",
            "file,prompt\nx/1.png,a\n1.png,b\n2.png,c\n",
            "lines 2 and 3 both name x/1.png; leave one",
        ),
        ("p.csv", "name,prompt\n1.png,a\n", "its first line must name the columns file and prompt, names name, prompt"),
        ("p.jsonl", '{"file": "1.png"}', "line 1 must read"),
        ("p.jsonl", "\n{", "line 2 is not JSON"),
    ],
)
def test_prompts_that_do_not_fit_say_how(name: str, text: str, expected: str) -> None:
    for image in ("x/1.png", "y/1.png", "y/2.png"):
        save_image(image)
    samples = image_samples(find_files([Path("x"), Path("y")], (".png",)))
    Path(name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=rf"^--prompts {name}: ") as caught:
        read_prompts(Path(name), samples)
    assert expected in str(caught.value)


def test_latent_files_that_cannot_be_read_are_rows_that_say_why(
    sd3_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"latents": latents_of(1)}, "0.safetensors")
    Path("1.safetensors").write_bytes(b"torn")
    save_file({"images": latents_of(1)}, "2.safetensors")
    save_file({"latents": latents_of(2), "seeds": torch.arange(3)}, "3.safetensors")
    save_file({"latents": latents_of(2)}, "4.safetensors", {"prompts": '["one"]'})
    rows = scored("--latents", ".", "--reward", LATENT, "--prompt", "x", "--model", str(sd3_folder), code=1)
    assert [row["LatentNorm"] == "" for row in rows] == [False, True, True, True, True]
    said = capsys.readouterr().err
    for words in (
        "1.safetensors: cannot be read: ",
        "2.safetensors: must hold a tensor 'latents', has images",
        "3.safetensors: 'seeds' must be [2] int64, is [3] torch.int64",
        "4.safetensors: the metadata 'prompts' must be a JSON list of 2 texts, is [\"one\"]",
    ):
        assert words in said


NOT_OF_A_POLICY = [
    (
        torch.zeros(1, 16, 3, 4),
        "'latents' must have a height and a width that are multiples of 2, as the policy's have",
    ),
    (
        torch.zeros(1, 16, 4, 0),
        "'latents' must have a height and a width that are multiples of 2, as the policy's have",
    ),
    (torch.zeros(1, 16, 4, 4, dtype=torch.int64), "'latents' must be of F64, F32, F16, BF16, is of I64"),
    (torch.zeros(0, 16, 4, 4), "'latents' holds no sample, is [0, 16, 4, 4]"),
]


@pytest.mark.parametrize(("latents", "says"), NOT_OF_A_POLICY)
def test_latents_that_no_policy_makes_are_a_row_that_says_why_and_alone_an_error(
    latents: torch.Tensor, says: str, sd3_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"latents": latents}, "odd.safetensors")
    words = ["--latents", "--reward", LATENT, "--prompt", "x", "--model", str(sd3_folder)]
    assert cli.main(["score", "odd.safetensors", *words, "--device", "cpu", "--out", "out.csv"]) == 2
    assert f"flowrl: error: odd.safetensors: {says}" in capsys.readouterr().err
    assert not Path("out.csv").exists()
    save_file({"latents": latents_of(1)}, "good.safetensors")
    rows = scored("odd.safetensors", "good.safetensors", *words, code=1)
    assert [row["LatentNorm"] == "" for row in rows] == [True, False]
    assert f"odd.safetensors: {says}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--reward", BRIGHT, "a.png"], "a.png: has no prompt of its own; give --prompts FILE, or --prompt TEXT"),
        (["--reward", BRIGHT, "b.png", "--prompt", "x"], "b.png: no such file or folder"),
        (["--reward", BRIGHT, "empty", "--prompt", "x"], "empty: no file in this folder ends in .png, .jpg, .jpeg"),
        (["--reward", BRIGHT, "a.png", "a.png", "--prompt", "x"], "a.png: given twice"),
        (["--reward", BRIGHT, "--reward", BRIGHT, "a.png", "--prompt", "x"], "two rewards are called 'Brightness'"),
        (["--reward", f"file={BRIGHT}", "a.png", "--prompt", "x"], "a reward cannot be called 'file'"),
        (["--reward", "hpsv4", "a.png", "--prompt", "x"], "unknown reward 'hpsv4'; did you mean 'hpsv3'?"),
        (["--reward", f"{BRIGHT} colour=1", "a.png", "--prompt", "x"], "the options {'colour': 1} do not fit"),
        (
            ["--reward", f"{BRIGHT} sign", "a.png", "--prompt", "x"],
            "must read key=value, such as batch_size=8, got 'sign'",
        ),
        (["--reward", " ", "a.png", "--prompt", "x"], "must read 'NAME option=value ...'"),
        (["--reward", LATENT, "a.png", "--prompt", "x"], "reads latents of vae16x8-scale1.5305-shift0.0609, but the"),
        (["--reward", LATENT, "a.png", "--prompt", "x", "--model", "empty"], "--model: empty is not a Stable"),
        (["--reward", LATENT, "--latents", "a.png"], "name the policy that made them, with --model FOLDER"),
        (["--reward", BRIGHT, "a.png", "--prompt", "x", "--out", "no/a.csv"], "--out no/a.csv: must be a file in"),
        (["--reward", BRIGHT, "a.png", "--prompt", "x", "--sheet", "empty"], "--sheet empty: must be a file in"),
        (["--reward", BRIGHT, "a.png", "--prompts", "p.txt"], "--prompts p.txt: cannot be read: No such file"),
        (["--reward", BRIGHT, "a.png", "--prompt", "x", "--image-size", "8"], "--image-size, unless 0, must"),
        (
            ["--reward", BRIGHT, "a.png", "--prompt", "x", "--bucket-step", "24"],
            "--bucket-step must be a multiple of 16",
        ),
        (["--reward", BRIGHT, "a.png", "--prompt", "x", "--max-aspect", "0.5"], "--max-aspect must be at least 1, got"),
        (
            ["--reward", BRIGHT, "--latents", "a.png", "--prompt", "x", "--image-size", "64"],
            "--latents: there are no images for --image-size, --bucket-step and --max-aspect; leave them out",
        ),
    ],
)
def test_wrong_input_is_one_clear_line(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    save_image("a.png")
    Path("empty").mkdir()
    assert cli.main(["score", *words]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("flowrl: error: ")
    assert expected in line


def test_latents_of_another_space_are_refused(sd3_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"latents": latents_of(1)}, "a.safetensors", {"latent_space": "vae4"})
    assert cli.main(["score", "--latents", "a.safetensors", "--reward", BRIGHT, "--model", str(sd3_folder)]) == 2
    assert "a.safetensors: holds latents of vae4, but the policy's are of vae16x8-scale1.5305" in (
        capsys.readouterr().err
    )


def test_a_reward_is_named_with_its_options_in_one_word() -> None:
    spec = read_reward("mine=pkg.mod:Judge path='a folder/b' batch_size=4 exact=true note=\"'007'\"")
    assert (spec.metric_name, spec.name) == ("mine", "pkg.mod:Judge")
    assert spec.options == {"path": "a folder/b", "batch_size": 4, "exact": True, "note": "007"}
    assert read_reward("pkg.mod:Judge").metric_name == "Judge"
    assert read_reward("pkg.mod:Judge rate=1e-3").options == {"rate": 0.001}  # as in a configuration


def test_what_no_reward_needs_is_not_loaded() -> None:
    save_image("a.png")
    rewards = [LabelledReward(label="b", reward=Brightness())]
    samples = image_samples([Path("a.png")])
    [one] = score(samples, ["x"], rewards, PolicyParts(NOWHERE), kind="pixel", with_pixels=True)
    assert one.row.scores[0] is not None
    assert one.pixels is not None


def test_a_sheet_is_a_png(sd3_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["score", "--reward", BRIGHT, ".", "--prompt", "x", "--sheet", "sheet.txt"]) == 2
    assert "--sheet sheet.txt: is written as PNG; give it a name that ends in .png" in capsys.readouterr().err
