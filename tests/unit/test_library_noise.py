"""What is said while models load: nothing, but that weights are missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from flowrl.base.library_noise import hush_before_imports
from tests.cheap_rewards import LATENT

ROOT = Path(__file__).parents[2]
MISSING = "text_model.encoder.layers.0.layer_norm1.weight"


def score(model: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """One image scored by a latent reward, with libraries as a shell starts them."""
    Image.new("RGB", (32, 32), "red").save(folder / "a.png")
    ours = ("HF_HUB_DISABLE_PROGRESS_BARS", "TRANSFORMERS_VERBOSITY")
    return subprocess.run(
        [sys.executable, "-m", "flowrl", "score", "--reward", LATENT, str(folder / "a.png"), "--prompt", "a red circle",
         "--model", str(model), "--max-sequence-length", "14", "--device", "cpu"],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name not in ours},
        capture_output=True,
        text=True,
        timeout=120,
    )  # fmt: skip


def test_models_load_without_a_word(sd3_folder: Path, tmp_path: Path) -> None:
    done = score(sd3_folder, tmp_path)
    assert done.stdout.startswith("file,prompt,LatentNorm\n")
    assert done.stderr == ""


def test_a_missing_weight_is_told(sd3_folder: Path, tmp_path: Path) -> None:
    torn = tmp_path / "torn"
    shutil.copytree(sd3_folder, torn)
    weights = torn / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    del tensors[MISSING]
    save_file(tensors, weights, metadata={"format": "pt"})
    done = score(torn, tmp_path)
    assert done.returncode == 2
    assert (
        f"text_encoder: its tensors are not those of the model: missing {MISSING}, unexpected none"
        in done.stderr.splitlines()[-1]
    )
    assert "%|" not in done.stderr  # of a progress bar


def test_a_setting_of_the_environment_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "HF_HUB_DISABLE_PROGRESS_BARS"
    monkeypatch.delenv(name, raising=False)
    hush_before_imports()
    assert os.environ[name] == "1"
    monkeypatch.setenv(name, "0")
    hush_before_imports()
    assert os.environ[name] == "0"
