"""The checks that a run makes before it starts, and the size of what it will write."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from flowrl.base.errors import CheckpointError
from flowrl.config import ConfigError, RunConfig, load
from flowrl.model_spec import ModelSpec
from flowrl.models.adapter_size import num_adapter_parameters
from flowrl.preflight import run_inputs
from flowrl.run import run_training
from tests import tiny

POCKET = Path(__file__).parents[2] / "configs" / "pocket" / "ditreward.yaml"


def config(folder: Path, *more: str) -> RunConfig:
    sizes = [f"model.image_size={tiny.IMAGE_SIZE}", "model.max_sequence_length=14", "rewards.watch=[]"]
    return load(POCKET, [f"model.path={folder}", "rewards.train=[{name: oracle}]", *sizes, *more])


def test_the_inputs_of_a_run_are_what_its_configuration_names(sd3_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a\nb\nc\nd\n")
    (tmp_path / "eval.txt").write_text("e\nf\n")
    files = [f"data.train_prompts={tmp_path / 'train.txt'}", f"data.eval_prompts={tmp_path / 'eval.txt'}"]
    sizes = ["rollout.prompts_per_step=4", "algorithm.inner_steps=1", "eval.num_prompts=2", "eval.grid_prompts=2"]
    asked = config(sd3_folder, *files, *sizes)
    inputs = run_inputs(asked)
    assert sorted(prompt.text for prompt in inputs.prompts.take(1)) == ["a", "b", "c", "d"]
    assert [prompt.text for prompt in inputs.held_out] == ["e", "f"]
    assert (inputs.config, inputs.model, inputs.notes) == (asked, ModelSpec.of(asked), [])
    with pytest.raises(ConfigError, match=r"eval.num_prompts must be at most .* = 2, got 4; add prompts or lower it"):
        run_inputs(config(sd3_folder, *files, *sizes, "eval.num_prompts=4"))


def test_what_a_torn_model_asks_for_is_kept_apart(tmp_path: Path) -> None:
    folder = tiny.write_folder(tmp_path / "sd3")
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="truncated") as caught:
        run_inputs(config(folder))
    assert caught.value.problem.startswith(f"model.path: {weights}: truncated or damaged: ")
    assert caught.value.advice == "copy it again"


@pytest.mark.parametrize("targets", [["attn.to_q", "attn.add_k_proj"], ["to_out.0", "proj_out", "context_embedder"]])
def test_the_size_of_an_adapter_is_known_before_it_is_made(sd3_folder: Path, targets: list[str]) -> None:
    policy = tiny.bare_policy(sd3_folder)
    policy.attach_adapter(rank=3, alpha=3, targets=targets, seed=0)
    made = sum(parameter.numel() for _, parameter in policy.trainable())
    assert num_adapter_parameters(sd3_folder / "transformer", rank=3, targets=targets) == made > 0


def test_a_run_asks_for_the_room_of_its_adapter_before_anything_starts(
    sd3_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=256 * 10**6))
    asked = config(sd3_folder, f"run.dir={tmp_path / 'run'}", "placement.mode=local", "eval.num_prompts=8")
    with pytest.raises(ConfigError, match=r"needs 257 MB of free disk space, for 2 checkpoints of"):
        run_training(asked)


def test_conditions_cannot_be_kept_in_a_file(sd3_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    asked = config(sd3_folder, f"data.condition_cache={tmp_path}/file", "eval.num_prompts=8")
    with pytest.raises(ConfigError, match=r"data\.condition_cache=.*/file must be writable: File exists"):
        run_inputs(asked)


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_weights_of_another_model_are_told_before_anything_starts(sd3_folder: Path, tmp_path: Path, part: str) -> None:
    other = tmp_path / "sd35"
    shutil.copytree(sd3_folder, other)
    save_file({"a": torch.zeros(2)}, other / part / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match=rf"model\.path: .*{part}: its tensors are not those of the model: missing"
    ):
        run_inputs(config(other))
