"""Whether the files of a model are whole, found out without loading them: one file, or shards with an index."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flowrl.base.weight_files import CheckpointError, check_model_folder, weight_files
from rewards.files import read_shards


def write_shards(folder: Path) -> Path:
    """Two shards of a tensor each, and their index."""
    for number in range(2):
        save_file({f"w{number}": torch.full((3,), float(number))}, folder / f"m-{number}.safetensors")
    index = folder / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w1": "m-1.safetensors", "w0": "m-0.safetensors"}}))
    return index


def test_without_an_index_there_is_one_file(tmp_path: Path) -> None:
    assert weight_files(tmp_path, "m") == [tmp_path / "m.safetensors"]
    with pytest.raises(CheckpointError, match=r"/m\.safetensors: this file is missing"):
        check_model_folder(tmp_path, "m")


def test_an_index_lists_the_files_each_once_in_order(tmp_path: Path) -> None:
    write_shards(tmp_path)
    assert weight_files(tmp_path, "m") == [tmp_path / "m-0.safetensors", tmp_path / "m-1.safetensors"]
    check_model_folder(tmp_path, "m")
    assert {key: value.tolist() for key, value in read_shards(tmp_path, "m").items()} == {"w0": [0] * 3, "w1": [1] * 3}


def test_a_shard_that_was_not_copied_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path)
    (tmp_path / "m-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"/m-1\.safetensors: this file is missing"):
        check_model_folder(tmp_path, "m")


@pytest.mark.parametrize("content", ['{"weight_map": {}}', '{"weight_map": ["m-0"]}', '{"weight_map": {"w": 1}}', "{}"])
def test_an_index_that_lists_no_files_is_named(tmp_path: Path, content: str) -> None:
    write_shards(tmp_path).write_text(content)
    with pytest.raises(CheckpointError, match=r"m\.safetensors\.index\.json: not an index of weight files"):
        weight_files(tmp_path, "m")
