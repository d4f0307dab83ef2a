"""Whole runs in one process: what they leave behind, what they learn, and that they can be repeated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flowrl.actors.run_actors import RunActors, ScoredGroups
from flowrl.actors.runtime import LocalRuntime
from flowrl.actors.start import start_actors
from flowrl.base.errors import UserError
from flowrl.config import ConfigError, RewardSpec
from flowrl.core import seeds
from flowrl.data import PromptOrder, read_prompts
from flowrl.model_spec import ModelSpec
from flowrl.partial_evaluation import PartialEvaluation
from flowrl.run import run_evaluation, run_training
from flowrl.samples import load_png
from flowrl.types import RolloutRequest, Scores, Trajectory
from tests import tiny
from tests.cheap_rewards import BRIGHT, BRIGHT_KEY, LATENT, LATENT_KEY
from tests.integration.runs import TinyRun, TinyRuns, same, unequal

STEP_KEYS = {
    f"reward/{LATENT_KEY}/mean",
    f"reward/{LATENT_KEY}/std",
    f"reward/{LATENT_KEY}/invalid",
    "reward/total/mean",
    "policy/loss",
    "policy/kl",
    "policy/ratio_absdev_max",
    "policy/ratio_absdev_step_0",
    "policy/clip_fraction",
    "policy/grad_norm",
    "policy/version",
    "time/rollout_s",
    "time/score_s",
    "time/update_s",
    "time/sync_s",
    "time/step_s",
    "bytes/trajectories",
    "bytes/weights",
    "memory/peak_gib",
    "speed/images_per_s",
}


def test_a_run_leaves_what_others_rely_on(runs: TinyRuns) -> None:
    run = runs.run()
    assert [row["step"] for row in run.metrics] == [0, 1, 2, 3, 4, 5]
    for row in run.metrics[1:]:
        assert STEP_KEYS <= row.keys()
    for row in (run.metrics[0], run.metrics[5]):
        assert {f"eval/{name}/mean" for name in (LATENT_KEY, BRIGHT_KEY)} <= row.keys()
    left = {path.name for path in run.folder.iterdir()}
    assert {"config.yaml", "env.json", "metrics.jsonl", "tb", "samples", "checkpoints", "lora", "report.html"} <= left
    assert sorted(path.name for path in (run.folder / "checkpoints").iterdir()) == ["step_000003", "step_000005"]
    assert (run.folder / "samples" / "step_000005.png").is_file()


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
def test_the_first_update_of_every_step_starts_at_ratio_exactly_1(runs: TinyRuns, device: str) -> None:
    # A GPU may take other kernels with gradients than without; how far that moves a ratio is measured here.
    allowed = 0.0 if device == "cpu" else 1e-5
    rows = runs.run(placement__device=device, gate__max_ratio_absdev=allowed).metrics[1:]
    assert max(row["policy/ratio_absdev_max"] for row in rows) <= allowed
    assert max(row["policy/logp_absdiff_max"] for row in rows) <= allowed
    assert [row["policy/version"] for row in rows] == [2, 4, 6, 8, 10]
    assert rows[-1]["policy/kl"] > 0


def test_the_same_configuration_gives_the_same_bits_and_another_seed_others(runs: TinyRuns) -> None:
    run, again, other = runs.run(), runs.run(run__overwrite=True), runs.run(run__seed=1)
    assert run.folder != again.folder
    assert same(run.adapter, again.adapter)
    assert unequal(run, again) == []
    assert not same(run.adapter, other.adapter)


@pytest.mark.gpu
def test_a_gpu_gives_the_numbers_of_the_cpu_to_rounding(runs: TinyRuns) -> None:
    cpu, gpu = runs.run(), runs.run(placement__device="cuda", gate__max_ratio_absdev=1e-5)
    for row, other in zip(cpu.metrics, gpu.metrics, strict=True):
        for key in (f"reward/{LATENT_KEY}/mean", f"eval/{LATENT_KEY}/mean", f"eval/{BRIGHT_KEY}/mean", "policy/kl"):
            if key in row:
                assert other[key] == pytest.approx(row[key], rel=1e-2, abs=1e-5)


def test_conditions_that_were_made_ahead_change_nothing(runs: TinyRuns, tmp_path: Path) -> None:
    plain = runs.run()
    ahead = runs.run(data__condition_cache=str(tmp_path / "conditions"), data__encode_ahead=3)
    assert same(ahead.adapter, plain.adapter)
    assert unequal(ahead, plain) == []
    # The prompts of both files, and the empty one.
    assert len(list((tmp_path / "conditions").glob("*/*.safetensors"))) == len({*tiny.TEXTS, ""})


def test_a_run_of_no_steps_evaluates_and_no_more(runs: TinyRuns) -> None:
    run = runs.run(run__steps=0)
    [row] = run.metrics
    full = runs.run().metrics[0]
    assert row[f"eval/{LATENT_KEY}/mean"] == full[f"eval/{LATENT_KEY}/mean"]
    assert not [key for key in row if key.startswith(("reward/", "policy/"))]
    assert all(not tensor.any() for name, tensor in run.adapter.items() if ".lora_B." in name)


def test_the_exported_adapter_gives_the_images_of_the_last_evaluation_in_the_diffusers_pipeline(
    runs: TinyRuns,
) -> None:
    run = runs.run(optim__lr=0.02)
    pipeline = StableDiffusion3Pipeline.from_pretrained(runs.policy)
    pipeline.set_progress_bar_config(disable=True)

    def sheet() -> torch.Tensor:
        rows = []
        for prompt in range(2):
            images = pipeline(
                [tiny.TEXTS[prompt]] * 2,
                latents=seeds.initial_noise(seeds.sample_seeds(1234, -1, prompt, 2), tiny.SHAPE),
                num_inference_steps=3,
                guidance_scale=4.5,
                height=tiny.IMAGE_SIZE,
                width=tiny.IMAGE_SIZE,
                max_sequence_length=14,
                output_type="pt",
            ).images
            rows.append(torch.cat(list(images), 2))
        return torch.cat(rows, 1)

    for step in (0, 5):
        shown = load_png(run.folder / "samples" / f"step_{step:06d}.png")
        if step:
            pipeline.load_lora_weights(run.folder / "lora")
        assert (shown.float() - 255 * sheet()).abs().max() <= 0.51
    first, last = (load_png(run.folder / "samples" / f"step_{step:06d}.png").float() for step in (0, 5))
    assert (first - last).abs().max() > 3


def test_an_exported_adapter_evaluates_as_it_did_when_its_run_ended(runs: TinyRuns, tmp_path: Path) -> None:
    run = runs.run()
    config = runs.config(tmp_path / "evaluation", run__steps=0)
    assert run_evaluation(config, run.folder / "lora") == 0
    [row] = TinyRun(folder=tmp_path / "evaluation").metrics
    for name in (LATENT_KEY, BRIGHT_KEY):
        assert row[f"eval/{name}/mean"] == run.metrics[5][f"eval/{name}/mean"] != run.metrics[0][f"eval/{name}/mean"]


@pytest.mark.parametrize("weights", ["policy", "ema"])
def test_a_checkpoint_evaluates_as_its_run_did_there(runs: TinyRuns, tmp_path: Path, weights: str) -> None:
    run = runs.run(eval__weights=weights, checkpoint__every=5)
    config = runs.config(tmp_path / "evaluation", run__steps=0, eval__weights=weights)
    assert run_evaluation(config, run.folder / "checkpoints" / "step_000005") == 0
    [row] = TinyRun(folder=tmp_path / "evaluation").metrics
    assert row[f"eval/{LATENT_KEY}/mean"] == run.metrics[5][f"eval/{LATENT_KEY}/mean"]
    assert row[f"eval/{LATENT_KEY}/mean"] != run.metrics[0][f"eval/{LATENT_KEY}/mean"]


@pytest.mark.parametrize("after", [0, 1, 2])
def test_an_evaluation_that_is_stopped_anywhere_goes_on_to_the_same_numbers(
    runs: TinyRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    monkeypatch.setattr("flowrl.evaluate._TOGETHER", 1)
    sample_and_score, asked = RunActors.sample_and_score, []

    def stopped(actors: RunActors, requests: Any, conditions: Any, *, num_images: int | None = None) -> ScoredGroups:
        if len(asked) == after:
            raise KeyboardInterrupt
        asked.append(requests)
        return sample_and_score(actors, requests, conditions, num_images=num_images)

    adapter = runs.run().folder / "lora"
    config = runs.config(tmp_path / "evaluation", run__steps=0, eval__grid_prompts=1)
    with monkeypatch.context() as patch:
        patch.setattr(RunActors, "sample_and_score", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_evaluation(config, adapter)
    left = tmp_path / ".evaluation.partial.jsonl"
    kept = left.read_bytes().count(b"\n") - 1
    assert kept == max(0, after - 1)  # of three groups the first brings images, and is made again
    left.write_bytes(left.read_bytes() + b'{"place": 2, "per_rew')
    with monkeypatch.context() as patch:
        after, asked = 99, []
        patch.setattr(RunActors, "sample_and_score", stopped)
        assert run_evaluation(config, adapter) == 0
    assert len(asked) == 3 - kept
    assert not left.exists()
    whole = runs.config(tmp_path / "whole", run__steps=0, eval__grid_prompts=1)
    assert run_evaluation(whole, adapter) == 0
    one, other = (TinyRun(folder=tmp_path / name) for name in ("evaluation", "whole"))
    assert unequal(one, other) == []
    assert [len(run.metrics) for run in (one, other)] == [1, 1]


def test_what_was_scored_with_other_weights_or_settings_does_not_count(tmp_path: Path) -> None:
    scores = {"a": torch.tensor([0.1, float("nan")])}
    kept = Scores(per_reward=scores, total=scores["a"], unnormalised=scores["a"], valid=scores["a"].isfinite())
    file = tmp_path / "partial"
    PartialEvaluation(file, "one").add({3: kept})
    back = PartialEvaluation(file, "one").get(3)
    assert back is not None
    assert torch.equal(back.per_reward["a"].nan_to_num(7.0), torch.tensor([0.1, 7.0]))
    assert PartialEvaluation(file, "two").get(3) is None
    assert PartialEvaluation(file, "one").get(3) is None


@pytest.mark.parametrize("with_mean", [False, True])
def test_parts_of_a_group_train_as_the_whole_does_but_for_rounding(runs: TinyRuns, with_mean: bool) -> None:
    changes = {"algorithm__ratio_norm": with_mean, "run__steps": 2, "eval__every": 0}
    whole, parts = runs.run(**changes), runs.run(rollout__samples_per_forward=2, **changes)
    assert [row["policy/ratio_absdev_max"] for row in parts.metrics[1:]] == [0.0, 0.0]
    for one, other in zip(whole.metrics[1:], parts.metrics[1:], strict=True):
        assert one[f"reward/{LATENT_KEY}/mean"] == pytest.approx(other[f"reward/{LATENT_KEY}/mean"], rel=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm__trained_steps": "window", "algorithm__window_size": 1, "algorithm__window_high": 2},
        {"algorithm__step_kind": "cps", "algorithm__noise_level": 0.8, "algorithm__kl_form": "velocity"},
        {"algorithm__ratio_norm": True, "algorithm__reweight_steps": True, "algorithm__std": "group"},
        {"algorithm__trained_steps": "fraction", "rollout__guidance_scale": 1.0, "algorithm__kl_beta": 0.0},
        {"model__dtype": "bfloat16"},
    ],
    ids=["window", "cps", "guard", "unguided", "bfloat16"],
)
def test_every_published_variant_starts_at_ratio_1_and_moves_the_adapter(
    runs: TinyRuns, changes: dict[str, Any]
) -> None:
    run = runs.run(run__steps=2, eval__every=0, **changes)
    assert [row["policy/ratio_absdev_max"] for row in run.metrics[1:]] == [0.0, 0.0]
    assert any(tensor.any() for name, tensor in run.adapter.items() if ".lora_B." in name)


def test_evaluating_the_moving_average_leaves_training_alone(runs: TinyRuns) -> None:
    plain, averaged = runs.run(eval__every=2), runs.run(eval__every=2, eval__weights="ema")
    assert same(plain.adapter, averaged.adapter)
    key = f"eval/{LATENT_KEY}/mean"
    for one, other in zip(plain.metrics, averaged.metrics, strict=True):
        assert one.get("policy/loss") == other.get("policy/loss")
    assert plain.metrics[0][key] == averaged.metrics[0][key]
    assert all(plain.metrics[step][key] != averaged.metrics[step][key] for step in (2, 4, 5))


def test_a_run_without_a_grid_evaluates_all_the_same(runs: TinyRuns) -> None:
    run = runs.run(run__steps=0, eval__grid_prompts=0)
    key = f"eval/{LATENT_KEY}/mean"
    assert run.metrics[0][key] == runs.run(run__steps=0).metrics[0][key]
    assert list((run.folder / "samples").iterdir()) == []


def test_a_policy_learns_a_latent_reward_in_less_than_100_updates(runs: TinyRuns) -> None:
    run = runs.run(
        run__steps=30,
        eval__every=30,
        rollout__prompts_per_step=4,
        rollout__group_size=8,
        algorithm__std="group",
        optim__lr=0.01,
    )
    first, last = run.metrics[0], run.metrics[30]
    assert last["policy/version"] == 60
    gain = last[f"eval/{LATENT_KEY}/mean"] - first[f"eval/{LATENT_KEY}/mean"]
    assert gain > 0.1  # of 2.1, with a spread between samples of 0.2
    assert max(row["policy/ratio_absdev_max"] for row in run.metrics[1:]) == 0.0


def test_matched_runs_differ_in_the_reward_and_in_nothing_else(runs: TinyRuns, tmp_path: Path) -> None:
    def first_rollout(reward: str) -> list[Trajectory]:
        config = runs.config(tmp_path / "unused", rewards__train=[RewardSpec(name=reward)], rewards__watch=[])
        actors = start_actors(config, ModelSpec.of(config), LocalRuntime())
        prompts = PromptOrder(read_prompts(runs.prompts(), "k"), per_step=2, seed=0).take(1)
        requests = [
            RolloutRequest(prompt=p, seed=0, step=1, num_samples=4, plan=tiny.sde_plan(), guidance_scale=4.5)
            for p in prompts
        ]
        return actors.runtime.get(actors.sample_and_score(requests, actors.encode(requests)).trajectories)

    for one, other in zip(first_rollout(LATENT), first_rollout(BRIGHT), strict=True):
        assert one.prompt == other.prompt
        assert one.path is not None
        assert other.path is not None
        assert torch.equal(one.path.latents, other.path.latents)
        assert torch.equal(one.final_latents, other.final_latents)
    latent, bright = (
        runs.run(),
        runs.run(rewards__train=[RewardSpec(name=BRIGHT)], rewards__watch=[RewardSpec(name=LATENT)]),
    )
    for name in (LATENT_KEY, BRIGHT_KEY):
        assert latent.metrics[0][f"eval/{name}/mean"] == bright.metrics[0][f"eval/{name}/mean"]
    assert not same(latent.adapter, bright.adapter)


def test_a_directory_that_holds_a_run_is_not_written_over(runs: TinyRuns) -> None:
    run = runs.run()
    before = (run.folder / "metrics.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="must be new, but it holds a run already"):
        run_training(runs.config(run.folder))
    assert (run.folder / "metrics.jsonl").read_bytes() == before


def test_more_held_out_prompts_than_there_are_is_an_error_before_anything_starts(
    runs: TinyRuns, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"at most the number of held-out prompts = 3, got 4"):
        run_training(runs.config(tmp_path / "run", eval__num_prompts=4))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("rollout__prompts_per_step", 3, "rollout.prompts_per_step must be a multiple of"),
        ("rollout__samples_per_forward", 3, "rollout.samples_per_forward must divide rollout.group_size = 4"),
    ],
)
def test_a_batch_that_does_not_divide_is_an_error(
    runs: TinyRuns, tmp_path: Path, key: str, value: int, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        runs.config(tmp_path / "run", **{key: value})


def test_a_policy_folder_that_is_torn_is_an_error_before_anything_starts(runs: TinyRuns, tmp_path: Path) -> None:
    folder = shutil.copytree(runs.policy, tmp_path / "policy")
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"^model\.path: .*diffusion_pytorch_model\.safetensors: truncated or damaged"):
        run_training(runs.config(tmp_path / "run", model__path=str(folder)))
    assert not (tmp_path / "run").exists()


def test_a_reward_that_was_trained_on_other_image_sizes_is_noted_on_the_console_and_in_the_log(
    runs: TinyRuns, tmp_path: Path, tiny_reward: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = shutil.copytree(tiny_reward, tmp_path / "reward") / "config.json"
    sizes = {"image_size": 16, "bucket_step": 16, "max_aspect": 1.0}
    config.write_text(json.dumps({**json.loads(config.read_text()), **sizes}))
    reward = RewardSpec(name="dit_reward", label="mine", options={"path": str(config.parent)})
    folder = tmp_path / "run"
    assert run_training(runs.config(folder, run__steps=0, rewards__train=[reward])) == 0
    line = (
        "mine was trained on images of about 16 x 16 in buckets of 16 up to 1:1; it gets latents of images of 32 x 32"
    )
    assert line in capsys.readouterr().out.splitlines()
    events = EventAccumulator(str(folder / "tb"))
    events.Reload()
    assert [one.tensor_proto.string_val[0].decode() for one in events.Tensors("notes/text_summary")] == [line]
    sizes["image_size"] = tiny.IMAGE_SIZE
    config.write_text(json.dumps({**json.loads(config.read_text()), **sizes}))
    assert run_training(runs.config(tmp_path / "other", run__steps=0, rewards__train=[reward])) == 0
    assert "trained on" not in capsys.readouterr().out


def test_learners_that_cannot_see_the_run_s_folder_stop_it_before_it_begins(
    runs: TinyRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a node without the disk of the driver.
    monkeypatch.setattr(Path, "is_file", lambda path: path != tmp_path / "run" / "config.yaml" and path.exists())
    with pytest.raises(ConfigError, match=r"^run\.dir: .*run is not on a disk that all nodes share"):
        run_training(runs.config(tmp_path / "run"))


def test_all_files_that_are_not_there_are_named_at_once(runs: TinyRuns, tmp_path: Path) -> None:
    policy, prompts = tmp_path / "stable-diffusion-3.5-large", tmp_path / "pickscore" / "train.txt"
    with pytest.raises(ConfigError) as raised:
        run_training(runs.config(tmp_path / "run", model__path=str(policy), data__train_prompts=str(prompts)))
    assert str(raised.value).splitlines() == [
        f"model.path: {policy} is not there",
        f"  data.train_prompts: {prompts} is not there",
        "  flowrl fetch CONFIG downloads what is public, and says how to get what is gated",
    ]
    assert not (tmp_path / "run").exists()


def test_a_reward_that_cannot_be_made_costs_nothing_that_was_there(
    runs: TinyRuns, tmp_path: Path, tiny_reward: Path
) -> None:
    folder = tmp_path / "run"
    assert run_training(runs.config(folder, run__steps=1)) == 0
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    torn = shutil.copytree(tiny_reward, tmp_path / "torn") / "reward_head.safetensors"
    torn.write_bytes(torn.read_bytes()[:-10])
    elsewhere = shutil.copytree(tiny_reward, tmp_path / "elsewhere") / "config.json"
    elsewhere.write_text(json.dumps({**json.loads(elsewhere.read_text()), "latent_space": "vae4x8"}))
    longer = shutil.copytree(tiny_reward, tmp_path / "longer") / "config.json"
    longer.write_text(json.dumps({**json.loads(longer.read_text()), "text_length": 30}))
    for path, says in {
        longer.parent: "trained on texts of 30 tokens, but gets 28 with model.max_sequence_length 14; set .* to 16",
        tmp_path / "nowhere": r"rewards\.train\[0\]\.options\.path: .*nowhere is not there; no DiT-Reward is public",
        torn.parent: r"reward_head\.safetensors: truncated or damaged",
        elsewhere.parent: "'dit_reward' reads latents of vae4x8, but the policy makes latents of vae16x8",
    }.items():
        reward = RewardSpec(name="dit_reward", options={"path": str(path)})
        # The mode would start Ray, which takes seconds: these errors come before.
        changes = {"rewards__train": [reward], "run__overwrite": True, "rollout__prompts_per_step": 4}
        changes |= {"placement__mode": "split"}
        with pytest.raises(ValueError, match=says):
            run_training(runs.config(folder, **changes))
        with pytest.raises(ValueError, match=says):
            run_training(runs.config(tmp_path / "new", **changes))
    assert {file: file.read_bytes() for file in before} == before
    assert not (tmp_path / "new").exists()


def test_a_start_that_fails_in_an_actor_costs_nothing_either(runs: TinyRuns, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run_training(runs.config(folder, run__steps=1)) == 0
    before = (folder / "metrics.jsonl").read_bytes()
    bad = RewardSpec(name=LATENT, options={"latent_space": "another"})
    for path in (folder, tmp_path / "new"):
        with pytest.raises(ConfigError, match="reads latents of another"):
            run_training(runs.config(path, rewards__train=[bad], run__overwrite=True))
    assert (folder / "metrics.jsonl").read_bytes() == before
    assert not (tmp_path / "new").exists()


def test_a_run_that_cannot_score_gives_back_what_it_was_to_overwrite(runs: TinyRuns, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run_training(runs.config(folder, run__steps=1)) == 0
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    foreign = runs.prompts("foreign", ("a cat", "a dog", "a cow"))
    for path in (folder, tmp_path / "new"):
        changes = {"data__eval_prompts": str(foreign), "rewards__watch": [RewardSpec(name="oracle")]}
        with pytest.raises(UserError, match=r"reward 'oracle' refuses its batch: prompt 'a cat' is not in the pocket"):
            run_training(runs.config(path, run__overwrite=True, **changes))
    assert {file: file.read_bytes() for file in before} == before
    assert not (tmp_path / "new").exists()


def test_samples_that_are_not_finite_end_a_run(runs: TinyRuns, tmp_path: Path) -> None:
    folder = shutil.copytree(runs.policy, tmp_path / "policy")
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["transformer_blocks.0.ff.net.2.weight"][:] = float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match="are not finite; the weights of the policy are damaged"):
        run_training(runs.config(tmp_path / "run", model__path=str(folder)))


def test_a_gpu_that_is_not_there_is_an_error_before_anything_starts(runs: TinyRuns, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(UserError, match=r"placement\.device is cuda, but torch .* finds no GPU"):
        run_training(runs.config(tmp_path / "run", placement__device="cuda"))
    assert not (tmp_path / "run").exists()


def test_without_beta_the_kl_is_unknown_and_not_0(runs: TinyRuns) -> None:
    rows = runs.run(algorithm__kl_beta=0.0).metrics[1:]
    assert [row["policy/kl"] for row in rows] == [None] * 5
    assert all(row["policy/loss"] == row["policy/policy_loss"] for row in rows)
