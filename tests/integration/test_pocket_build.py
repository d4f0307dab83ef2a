"""The whole way from nothing to the pocket checkpoints, at a fiftieth of the work, killed once on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from flowrl.pocket.provenance import describe
from rewards.dit_reward import DiTReward
from rewards.hpsv3 import HPSv3Reward


def start(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "flowrl", "pocket", "build", "--seed", "5", "--scale", "0.02"]
    command += ["--out", str(folder / "out"), "--work", str(folder / "work")]
    with (folder / "log").open("a") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )


@pytest.mark.slow
def test_a_build_that_was_killed_goes_on_and_leaves_models_that_load(tmp_path: Path) -> None:
    begun = start(tmp_path)
    shard = tmp_path / "work" / "preferences" / "drawn" / "train-policy-000.safetensors"
    deadline = time.monotonic() + 600
    while not shard.is_file():
        assert begun.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    begun.send_signal(signal.SIGKILL)
    begun.wait()
    records = tmp_path / "work" / "records"
    assert {path.stem for path in records.iterdir()} == {"vae", "policy"}
    done = {path: path.read_bytes() for path in [*records.iterdir(), shard]}

    assert start(tmp_path).wait() == 0, (tmp_path / "log").read_text()[-3000:]
    assert {path: path.read_bytes() for path in done} == done

    out = tmp_path / "out"
    images = StableDiffusion3Pipeline.from_pretrained(out / "sd35")(
        "a large red circle on sand", height=64, width=64, num_inference_steps=2, output_type="pt"
    ).images
    assert images.shape == (1, 3, 64, 64)
    assert torch.isfinite(images).all()
    assert DiTReward(path=str(out / "dit_reward")).latent_space
    assert HPSv3Reward(path=str(out / "hpsv3")).input_kind == "pixel"
    stages = json.loads((out / "provenance.json").read_text())["stages"]
    assert stages["vae"]["steps"] == 56
    assert stages["dit_reward"]["steps"] == 10
    assert 0 < stages["hpsv3"]["accuracy"]["all"] < 1
    assert "made by flowrl pocket build --seed 5 --scale 0.02" in describe(out)
