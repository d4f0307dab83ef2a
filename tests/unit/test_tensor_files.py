"""Tensors that are read one by one from files, and modules that get them so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flowrl.base.empty_module import EmptyModule, fill, is_empty
from flowrl.base.errors import CheckpointError
from flowrl.base.tensor_files import TensorFiles

HALF = torch.arange(12, dtype=torch.bfloat16).reshape(3, 4)


@pytest.fixture
def files(tmp_path: Path) -> TensorFiles:
    save_file({"half": HALF}, tmp_path / "a.safetensors")
    save_file({"odd": torch.ones(3), "single": torch.arange(6.0)}, tmp_path / "b.safetensors")
    return TensorFiles([tmp_path / "a.safetensors", tmp_path / "b.safetensors"])


def mappings(folder: Path) -> str:
    """What this process has mapped of a folder's files."""
    return "\n".join(line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line)


def test_shapes_are_known_and_nothing_is_mapped_before_a_tensor_is_asked_for(
    files: TensorFiles, tmp_path: Path
) -> None:
    assert files.shapes == {"half": (3, 4), "odd": (3,), "single": (6,)}
    assert mappings(tmp_path) == ""


def test_a_view_holds_its_file_only_as_long_as_it_lives(files: TensorFiles, tmp_path: Path) -> None:
    view = files.view("half")
    assert torch.equal(view, HALF)
    assert "a.safetensors" in mappings(tmp_path)
    del view
    assert mappings(tmp_path) == ""


def test_what_has_the_dtype_asked_for_is_shared_and_all_else_is_in_memory_of_its_own(
    files: TensorFiles, tmp_path: Path
) -> None:
    shared = files.share("half", torch.bfloat16)
    assert torch.equal(shared, HALF)
    starts = [line.split("-")[0] for line in mappings(tmp_path).splitlines()]
    assert any(0 <= shared.data_ptr() - int(start, 16) < 4096 for start in starts)
    other = files.share("half", torch.float32)
    assert torch.equal(other, HALF.float())
    # Where float32 numbers lie in the file is its affair: one of these at least is not where torch would have it.
    assert {files.share(key, torch.float32).data_ptr() % 64 == 0 for key in ("odd", "single")} != {True}
    for key in ("odd", "single"):
        assert files.share(key, torch.float32, placed=True).data_ptr() % 64 == 0


def test_a_file_that_is_missing_or_torn_is_named(files: TensorFiles, tmp_path: Path) -> None:
    torn = tmp_path / "b.safetensors"
    torn.write_bytes(torn.read_bytes()[:-3])
    for file, says in ((torn, "truncated or damaged"), (tmp_path / "c.safetensors", "this file is missing")):
        with pytest.raises(CheckpointError, match=rf"^{file}: {says}"):
            TensorFiles([tmp_path / "a.safetensors", file])


class Tied(torch.nn.Module):
    """Two layers with one weight, and a table that the state dict has."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("table", torch.zeros(2))


def empty() -> Tied:
    with torch.device("meta"):
        return Tied()


def test_weights_that_are_tied_are_given_once_and_stay_one() -> None:
    module = empty()
    assert is_empty(module)
    weight = torch.arange(16.0).reshape(4, 4)
    fill(module, [("second.weight", weight), ("table", torch.ones(2))], torch.device("cpu"))
    assert not is_empty(module)
    assert module.first.weight is module.second.weight
    assert module.first.weight.data_ptr() == weight.data_ptr()
    assert module.table.tolist() == [1, 1]
    assert [name for name, _ in module.named_buffers()] == ["table"]


def test_weights_that_do_not_fit_an_empty_module_are_refused() -> None:
    weight, table = ("first.weight", torch.zeros(4, 4)), ("table", torch.zeros(2))
    for weights, says in (
        ([weight], r"^table was not given \(1 such\)$"),
        ([weight, table, table], "^table is not a tensor that the module lacks, or was given before$"),
        ([("first.weight", torch.zeros(4, 3))], r"^first.weight must have shape \[4, 4\], got \[4, 3\]$"),
    ):
        with pytest.raises(ValueError, match=says):
            fill(empty(), weights, torch.device("cpu"))


def test_a_buffer_that_nothing_will_fill_is_an_error_at_once() -> None:
    module = empty()
    module.register_buffer("frequencies", torch.zeros(2, device="meta"), persistent=False)
    with pytest.raises(ValueError, match="the buffer frequencies of an empty module has no values"):
        EmptyModule(module)
