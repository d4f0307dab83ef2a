"""Text conditions: encoded once, kept on disk under all that they depend on, by encoders that are there no longer than
they work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flowrl.actors.encoder import Encoder
from flowrl.base.errors import CheckpointError
from flowrl.models.condition_cache import ConditionCache
from flowrl.models.sd3 import SD3, SD3PromptEncoder
from flowrl.types import TextCondition
from tests import tiny


def cache(
    folder: Path, *, encoders: str = "e", text_length: int = 28, dtype: torch.dtype = torch.float32
) -> ConditionCache:
    return ConditionCache(folder, encoders=encoders, text_length=text_length, dtype=dtype)


def equal(one: TextCondition, other: TextCondition) -> bool:
    return torch.equal(one.embeds, other.embeds) and torch.equal(one.pooled, other.pooled)


def test_a_condition_comes_back_as_it_was(tmp_path: Path) -> None:
    kept = tiny.random_condition(3)
    half = TextCondition(embeds=kept.embeds.bfloat16(), pooled=kept.pooled.bfloat16())
    for text, condition in {"a": kept, "b": half, "": kept}.items():
        assert text not in cache(tmp_path)
        cache(tmp_path).save(text, condition)
        assert text in cache(tmp_path)
        found = cache(tmp_path).load(text)
        assert equal(found, condition)
        assert found.embeds.dtype == condition.embeds.dtype


def test_all_that_a_condition_depends_on_is_in_the_name_of_its_file(tmp_path: Path) -> None:
    others = [cache(tmp_path, encoders="f"), cache(tmp_path, text_length=29), cache(tmp_path, dtype=torch.bfloat16)]
    files = {one.path(text) for one in (cache(tmp_path), *others) for text in ("a", "b", "a ")}
    assert len(files) == 12


def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    cache(tmp_path).save("a", tiny.random_condition(3))
    path = cache(tmp_path).path("a")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=rf"^{path}: this text condition is damaged .*; remove the file$"):
        cache(tmp_path).load("a")


class Loads:
    """Counts how often text encoders were loaded, and which of them are still there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        load = SD3.load_encoder

        def counted(path: Path, *, max_sequence_length: int, dtype: torch.dtype, device: str) -> SD3PromptEncoder:
            self.count += 1
            return load(path, max_sequence_length=max_sequence_length, dtype=dtype, device=device)

        monkeypatch.setattr(SD3, "load_encoder", staticmethod(counted))


def test_encoders_are_loaded_for_what_is_missing_and_freed(
    sd3_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = Loads(monkeypatch)
    plain = Encoder(tiny.model_spec(sd3_folder))
    assert loads.count == 1
    assert plain.prepare([*tiny.TEXTS]) == 0  # it has nowhere to keep them
    expected = [plain.encode(text) for text in tiny.TEXTS[:3]]
    freed = Encoder(tiny.model_spec(sd3_folder), str(tmp_path / "made" / "here"), stays=False)
    assert loads.count == 1
    assert freed.prepare([*tiny.TEXTS[:3], tiny.TEXTS[0]]) == 3
    assert freed.prepare([*tiny.TEXTS[:3]]) == 0
    assert loads.count == 2
    assert freed._encoders is None
    assert all(equal(freed.encode(text), wanted) for text, wanted in zip(tiny.TEXTS, expected, strict=False))
    assert loads.count == 2
    freed.encode(tiny.TEXTS[4])  # not prepared: slower, and right
    assert loads.count == 3
    # Another run of the same model finds them there.
    again = Encoder(tiny.model_spec(sd3_folder), str(tmp_path / "made" / "here"), stays=False)
    assert again.prepare([*tiny.TEXTS[:5]]) == 1
    assert loads.count == 4


def change_weight(folder: Path) -> None:
    file = folder / "text_encoder_3" / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 2)
    tensors[name][0, 0] += 1
    save_file(tensors, file, {"format": "pt"})


def change_setting(folder: Path) -> None:
    file = folder / "text_encoder" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "layer_norm_eps": 0.5}))


def change_tokenizer(folder: Path) -> None:
    file = next((folder / "tokenizer_2").glob("*.json"))
    file.write_text(file.read_text() + " ")


def change_transformer(folder: Path) -> None:
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file, {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "differs"),
    [(change_weight, True), (change_setting, True), (change_tokenizer, True), (change_transformer, False)],
)
def test_the_digest_is_that_of_what_makes_conditions(
    sd3_folder: Path, tmp_path: Path, change: object, differs: bool
) -> None:
    assert callable(change)
    copy = tmp_path / "copy"
    shutil.copytree(sd3_folder, copy)
    assert SD3.text_encoders(copy) == SD3.text_encoders(sd3_folder)
    change(copy)
    assert (SD3.text_encoders(copy) != SD3.text_encoders(sd3_folder)) == differs
