"""Prepared preference sets: what is stored of the published formats, interruptions, parts, broken images."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from flowrl.base.config_tree import ConfigError
from flowrl.base.embedded import embedded
from flowrl.base.errors import CheckpointError, UserError
from flowrl.base.folder_lock import take_lock
from flowrl.core.buckets import BucketPlan, fit
from flowrl.models.sd3 import SD3
from flowrl.types import TextCondition
from rewards.data import prepare as prepare_module
from rewards.data import source_files
from rewards.data.comparison import ImageRef
from rewards.data.images import ImageReader
from rewards.data.overlap import Overlap, overlap
from rewards.data.prepare import Encoders, prepare
from rewards.data.set_origin import check_choices, check_files, check_folder, prepared_buckets, settle
from rewards.data.source import DataSource
from rewards.data.store import PreferenceStore, save_tensors
from rewards.training.batches import ComparisonBatcher
from tests import preference_files as files

BUCKETS = BucketPlan(image_size=48, step=16)
SIZES = {(48, 48), (32, 64), (64, 32)}


def pixel_encoders() -> Encoders:
    return Encoders(name="", latent_space="", image=None, text=None, dtype=torch.float32)


def brightness(pixels: torch.Tensor) -> torch.Tensor:
    """A stand-in for a VAE where only the bookkeeping is under test: the mean of each 8 x 8 block, twice."""
    blocks = torch.nn.functional.avg_pool2d(pixels.mean(1, keepdim=True), 8)
    return torch.cat([blocks, -blocks], 1)


def words(text: str) -> TextCondition:
    """A condition that tells texts apart."""
    digest = torch.tensor(list(hashlib.sha256(text.encode()).digest()), dtype=torch.float32)
    return TextCondition(embeds=digest.reshape(1, 4, 8), pooled=digest[None, :5])


def cheap_encoders(
    image: Callable[[torch.Tensor], torch.Tensor] = brightness, text: Callable[[str], TextCondition] = words
) -> Encoders:
    return Encoders(name="cheap", latent_space="blocks", image=image, text=text, dtype=torch.float16)


def fill(folder: Path, sources: list[DataSource], encoders: Encoders | None = None, **changes: float | int) -> bool:
    settings = {"encode_batch": 3, "max_bad_share": 0.01, **changes}
    return prepare(folder, sources, encoders or cheap_encoders(), BUCKETS, **settings)


def all_formats(root: Path) -> list[DataSource]:
    return [
        DataSource(format="hpdv3", path=str(files.write_hpdv3(root / "hpdv3"))),
        DataSource(format="hpdv2", path=str(files.write_hpdv2_train(root / "hpdv2", seed=1))),
        DataSource(format="image_reward", path=str(files.write_image_reward(root / "image_reward", seed=2))),
        DataSource(format="jsonl", path=str(files.write_jsonl(root / "jsonl", seed=3)), weight=0.5),
        DataSource(format="pick_a_pic", path=str(files.write_pick_a_pic(root / "pick", seed=4))),
    ]


def jsonl(folder: Path, num: int = 8) -> DataSource:
    return DataSource(format="jsonl", path=str(files.write_jsonl(folder, num=num)))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of five, so that a few images make many."""
    monkeypatch.setattr(prepare_module, "_PER_SHARD", 5)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory, sd3_folder: Path) -> tuple[Path, list[DataSource]]:
    """All formats as a pixel set and as a latent set of the tiny policy's own encoders; read them only."""
    root = tmp_path_factory.mktemp("mixture")
    sources = all_formats(root)
    text = SD3.load_encoder(sd3_folder, max_sequence_length=14, dtype=torch.float32, device="cpu")
    policy = Encoders(
        name="tiny",
        latent_space=SD3.latent_space(sd3_folder),
        image=SD3.load_image_encoder(sd3_folder, device="cpu").encode,
        text=text.encode,
        dtype=torch.float32,
    )
    assert fill(root / "latents", sources, policy)
    assert fill(root / "pixels", sources, pixel_encoders())
    return root, sources


def test_the_pairs_are_those_of_the_files(mixture: tuple[Path, list[DataSource]]) -> None:
    root, _ = mixture
    store = PreferenceStore(root / "pixels")
    assert store.info.sources == ("hpdv3", "hpdv2", "image_reward", "jsonl", "pick_a_pic")
    assert store.info.holds == ("pixels",)
    assert set(store.info.categories) == {"", "animal", "other"}
    assert (store.info.latent_space, store.info.text_length, store.info.encoders) == ("", 0, "")
    pairs = store.pairs
    by_source = [pairs.select(pairs.source == number) for number in range(5)]
    assert [len(one) for one in by_source] == [8, 8, 24, 8, 14]
    assert [int(one.tie.sum()) for one in by_source] == [0, 0, 4, 2, 4]
    assert len(torch.unique(by_source[2].comparison)) == 4  # of six pairs each
    # The brighter image is the preferred one, whatever the format, and both answer one prompt.
    mean = torch.stack([store.tensors("pixels", torch.tensor([row])).mean() for row in range(store.info.num_samples)])
    decided = ~pairs.tie
    assert (mean[pairs.winner] > mean[pairs.loser])[decided].all()
    assert torch.equal(store.prompt[pairs.winner], store.prompt[pairs.loser])
    assert all(store.prompts[row].startswith("a ") for row in store.prompt.tolist())
    statistics = json.loads((root / "pixels" / "statistics.json").read_text())
    assert [one["pairs"] + one["ties"] for one in statistics["sources"]] == [8, 8, 24, 8, 14]
    assert "pick_a_pic" in (root / "pixels" / "statistics.md").read_text()


def test_pixels_are_the_bucketed_images_to_a_byte(mixture: tuple[Path, list[DataSource]]) -> None:
    root, _ = mixture
    store = PreferenceStore(root / "pixels")
    row = int(store.pairs.winner[0])
    better = json.loads((root / "hpdv3" / "train.json").read_text())[0]
    image = ImageReader().pixels(ImageRef(path=str(root / "hpdv3" / better["path1"])))
    size = BUCKETS.size_for(*image.shape[1:])
    expected = (255 * fit(image, size)).round() / 255
    assert torch.equal(store.tensors("pixels", torch.tensor([row]))[0], expected)
    assert store.prompts[int(store.prompt[row])] == better["prompt"]


def test_latents_and_conditions_are_the_policys_own(mixture: tuple[Path, list[DataSource]], sd3_folder: Path) -> None:
    root, _ = mixture
    store = PreferenceStore(root / "latents")
    assert store.info.latent_space == SD3.latent_space(sd3_folder)
    assert store.info.text_length == 28
    assert store.info.encoders == "tiny"
    encoder = SD3.load_image_encoder(sd3_folder, device="cpu")
    text = SD3.load_encoder(sd3_folder, max_sequence_length=14, dtype=torch.float32, device="cpu")
    rows = json.loads((root / "hpdv3" / "train.json").read_text())
    hpdv3 = store.pairs.select(store.pairs.source == 0)
    for number in (0, 2, 5):  # one of each shape of image
        for name, sample in (("path1", hpdv3.winner[number]), ("path2", hpdv3.loser[number])):
            image = ImageReader().pixels(ImageRef(path=str(root / "hpdv3" / rows[number][name])))
            latents = encoder.encode(fit(image, BUCKETS.size_for(*image.shape[1:]))[None])
            torch.testing.assert_close(store.tensors("latents", sample[None]), latents, rtol=1e-4, atol=1e-5)
        condition = text.encode(rows[number]["prompt"])
        found = store.conditions(store.prompt[hpdv3.winner[number]][None])
        torch.testing.assert_close(found.embeds, condition.embeds)
        torch.testing.assert_close(found.pooled, condition.pooled)


def test_aspects_end_in_buckets_that_can_be_dealt(mixture: tuple[Path, list[DataSource]]) -> None:
    store = PreferenceStore(mixture[0] / "pixels")
    shapes = {}
    for number in torch.unique(store.shape).tolist():
        rows = (store.shape == number).nonzero()[:, 0]
        shapes[number] = tuple(store.tensors("pixels", rows).shape[2:])  # stacks only what has one shape
    assert set(shapes.values()) == SIZES
    batcher = ComparisonBatcher(store.pairs, store.shape, batch_size=4, seed=0)
    for step in range(batcher.num_steps(1)):
        for micro in batcher.micro_batches(batcher.at(step), size=4):
            assert len(torch.unique(store.shape[micro.samples])) == 1


class Killed(BaseException):
    """Ends a run where it stands, as a signal would."""


def test_a_run_that_is_ended_after_any_shard_goes_on_to_the_same_bytes(tmp_path: Path, small_shards: None) -> None:
    sources = [jsonl(tmp_path / "data", num=20)]
    assert fill(tmp_path / "whole", sources)
    expected = contents(tmp_path / "whole")
    num_shards = len([name for name in expected if name.endswith(".safetensors") and "/" in name])
    assert num_shards == 12
    ended, resumptions, done = tmp_path / "ended", 0, False
    while not done:
        found = len(list(ended.glob("*/*.safetensors")))

        def die_after_a_shard(found: int = found) -> None:
            if len(list(ended.glob("*/*.safetensors"))) > found:
                raise Killed

        def image(pixels: torch.Tensor, check: Callable[[], None] = die_after_a_shard) -> torch.Tensor:
            check()
            return brightness(pixels)

        def text(prompt: str, check: Callable[[], None] = die_after_a_shard) -> TextCondition:
            check()
            return words(prompt)

        try:
            done = fill(ended, sources, cheap_encoders(image, text))
        except Killed:
            resumptions += 1
            assert not (ended / "store.json").exists()
            with pytest.raises(CheckpointError, match=r"not a prepared preference set, or not a whole one"):
                PreferenceStore(ended)
    assert resumptions == num_shards - 1
    assert contents(ended) == expected
    assert fill(ended, sources)  # and once more changes nothing
    assert contents(ended) == expected


def test_leavings_of_killed_processes_are_cleared_away(tmp_path: Path, small_shards: None) -> None:
    sources = [jsonl(tmp_path / "data")]
    assert fill(tmp_path / "whole", sources)
    assert not fill(tmp_path / "killed", sources, part=0, num_parts=2)
    for part in (0, 7):
        (tmp_path / "killed" / f".scan-{part}").mkdir()
        (tmp_path / "killed" / f".scan-{part}" / "00001.safetensors").write_bytes(b"half a shard")
    assert fill(tmp_path / "killed", sources)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_what_a_part_at_work_has_begun_to_write_is_left_to_it(tmp_path: Path, small_shards: None) -> None:
    sources = [jsonl(tmp_path / "data")]
    own = tmp_path / "set" / ".scan-1"
    own.mkdir(parents=True)
    held = as_of_another(own)
    (own / "00001.safetensors").write_bytes(b"half a shard")
    assert fill(tmp_path / "set", sources)  # all of it, in one part
    assert (own / "00001.safetensors").read_bytes() == b"half a shard"
    held.close()


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").mkdir()
    with pytest.raises(IsADirectoryError):
        save_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(1)})
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_two_parts_make_what_one_run_makes(tmp_path: Path, small_shards: None) -> None:
    sources = [jsonl(tmp_path / "data", num=20)]
    assert fill(tmp_path / "whole", sources)
    assert not fill(tmp_path / "parts", sources, part=0, num_parts=2)
    assert not (tmp_path / "parts" / "store.json").exists()
    halves = sorted(path.name for path in (tmp_path / "parts" / "samples").iterdir())
    assert halves[:2] == ["00000.safetensors", "00002.safetensors"]
    assert not fill(tmp_path / "parts", sources, part=0, num_parts=2)  # again: nothing to do
    assert fill(tmp_path / "parts", sources, part=1, num_parts=2)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_every_sample_and_prompt_is_found_in_its_shard(tmp_path: Path, small_shards: None) -> None:
    assert fill(tmp_path / "set", [jsonl(tmp_path / "data", num=24)])
    store = PreferenceStore(tmp_path / "set")
    assert (store.info.num_prompts, store.info.num_samples) == (12, 48)
    found = store.conditions(torch.arange(12))
    expected = [words(prompt) for prompt in store.prompts]
    assert torch.equal(found.embeds.float(), torch.cat([one.embeds for one in expected]))
    assert torch.equal(found.pooled.float(), torch.cat([one.pooled for one in expected]))
    lines = (tmp_path / "data" / "pairs.jsonl").read_text().splitlines()
    for pair, line in enumerate(map(json.loads, lines)):
        for key, sample in (("preferred", store.pairs.winner[pair]), ("rejected", store.pairs.loser[pair])):
            image = ImageReader().pixels(ImageRef(path=str(tmp_path / "data" / line[key])))
            latents = brightness(fit(image, BUCKETS.size_for(*image.shape[1:]))[None])
            torch.testing.assert_close(store.tensors("latents", sample[None]), latents, rtol=0, atol=1e-3)
            assert store.prompts[int(store.prompt[sample])] == line["prompt"]


def as_of_another(folder: Path) -> IO[str]:
    """A folder's lock, held as by another process."""
    held = take_lock(folder, "data.store")
    assert held is not None
    held.truncate(0)
    held.write("1")
    held.flush()
    return held


def test_one_part_is_prepared_by_one_process(tmp_path: Path) -> None:
    sources = [jsonl(tmp_path / "data")]
    own = tmp_path / "set" / ".scan-0"
    fill(tmp_path / "set", sources, part=1, num_parts=2)
    own.mkdir()
    held = as_of_another(own)
    with pytest.raises(ConfigError, match=r"data.store=.*\.scan-0 must be written by one process, but process 1 is"):
        fill(tmp_path / "set", sources)
    held.close()
    assert fill(tmp_path / "set", sources)


def test_sources_that_changed_since_are_refused(tmp_path: Path, small_shards: None) -> None:
    source = jsonl(tmp_path / "data")
    assert not fill(tmp_path / "set", [source], part=0, num_parts=2)
    rows = files.read_rows(Path(source.path))
    files.write_json(Path(source.path), rows[1:])
    with pytest.raises(ConfigError, match=r"set: the sources are not what they were when this set was begun"):
        fill(tmp_path / "set", [source], part=1, num_parts=2)
    files.write_json(Path(source.path), rows)
    assert fill(tmp_path / "set", [source], part=1, num_parts=2)


def cut(path: Path) -> None:
    """Cut an image off after its header."""
    data = path.read_bytes()
    path.write_bytes(data[: 2 * len(data) // 3])


def test_an_image_cut_off_after_its_header_is_counted_named_and_left_out(tmp_path: Path, small_shards: None) -> None:
    source = jsonl(tmp_path / "data", num=12)
    bad = tmp_path / "data" / "images" / "00003-0.jpg"
    cut(bad)
    assert fill(tmp_path / "set", [source], max_bad_share=0.1)
    store = PreferenceStore(tmp_path / "set")
    assert len(store.pairs) == 11
    (reason,) = json.loads((tmp_path / "set" / "broken.json").read_text()).values()
    assert "00003-0.jpg: damaged or not usable" in reason
    (number,) = map(int, json.loads((tmp_path / "set" / "broken.json").read_text()))
    assert number not in torch.cat([store.pairs.winner, store.pairs.loser])
    assert store.info.num_samples == 24
    # The others are as they were.
    cut_shard, row = int(store.shard[number]), int(store._row[number])
    with safe_open(tmp_path / "set" / "samples" / f"{cut_shard:05d}.safetensors", framework="pt") as shard:
        latents = shard.get_tensor("latents")
    assert [float(one.abs().sum()) > 0 for one in latents] == [place != row for place in range(len(latents))]


def test_too_many_broken_images_are_an_error_that_names_them(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "data", num=12)
    for row in (1, 3, 5):
        cut(tmp_path / "data" / "images" / f"{row:05d}-0.jpg")
    with pytest.raises(
        UserError, match=r"3 of 24 images of jsonl are broken, more than data.max_bad_share=0.1; .*00001-0"
    ):
        fill(tmp_path / "set", [source], max_bad_share=0.1)
    assert not (tmp_path / "set" / "store.json").exists()
    assert fill(tmp_path / "set", [source], max_bad_share=0.2)


def test_the_broken_images_of_a_small_source_are_not_hidden_by_a_large_one(tmp_path: Path) -> None:
    large, small = jsonl(tmp_path / "large", num=40), replace(jsonl(tmp_path / "small", num=4), name="small")
    cut(tmp_path / "small" / "images" / "00001-0.jpg")
    with pytest.raises(UserError, match=r"1 of 8 images of small are broken, more than data.max_bad_share=0.1"):
        fill(tmp_path / "set", [large, small], max_bad_share=0.1)


def test_the_first_table_says_what_was_lost_and_what_is_left_of_each_source(tmp_path: Path) -> None:
    rankings = DataSource(format="image_reward", path=str(files.write_image_reward(tmp_path / "rankings", seed=1)))
    pairs, untouched = jsonl(tmp_path / "pairs", num=12), replace(jsonl(tmp_path / "more", num=4), name="more")
    cut(tmp_path / "pairs" / "images" / "00003-0.jpg")
    cut(next((tmp_path / "rankings").rglob("*.jpg")))
    assert fill(tmp_path / "set", [rankings, pairs, untouched], max_bad_share=0.3)
    store = PreferenceStore(tmp_path / "set")
    statistics = json.loads((tmp_path / "set" / "statistics.json").read_text())["sources"]
    head, _, *lines = (tmp_path / "set" / "statistics.md").read_text().splitlines()[2:7]
    names = [cell.strip() for cell in head.split("|")]
    for number, (one, line) in enumerate(zip(statistics, lines, strict=True)):
        own = store.pairs.select(store.pairs.source == number)
        cells = dict(zip(names, (cell.strip() for cell in line.split("|")), strict=True))
        assert int(cells["pairs in the set"]) == one["pairs"] - one["lost"]["pairs"] == int((~own.tie).sum())
        assert int(cells["ties in the set"]) == one["ties"] - one["lost"]["ties"] == int(own.tie.sum())
        assert [int(cells[f"lost {kind}"]) for kind in ("images", "pairs", "ties")] == list(one["lost"].values())[:3]
    lost = [one["lost"] for one in statistics]
    assert [one["images"] for one in lost] == [1, 1, 0]
    assert [one["pairs"] + one["ties"] for one in lost] == [3, 1, 0]  # an image of a ranking of four has three pairs


def test_an_empty_file_of_pairs_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("")
    with pytest.raises(UserError, match=r"pairs.jsonl: no comparison is left of 0 rows"):
        fill(tmp_path / "set", [DataSource(format="jsonl", path=str(tmp_path / "pairs.jsonl"))])


def other_texts(prompt: str) -> TextCondition:
    condition = words(prompt)
    return TextCondition(embeds=condition.embeds[:, :3], pooled=condition.pooled)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"sources": {"min_confidence": 0.5}}, "sources"),
        ({"buckets": {"max_aspect": 1.5}}, "buckets"),
        ({"encoders": {"dtype": torch.bfloat16}}, "dtype"),
        ({"encoders": {"name": "other"}}, "encoders"),
        ({"encoders": {"latent_space": "other"}}, "latent_space"),
        ({"encoders": {"text": other_texts}}, "text_length"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(
    tmp_path: Path, change: dict[str, dict[str, object]], key: str, whole: bool, small_shards: None
) -> None:
    source = jsonl(tmp_path / "data", num=4)
    assert fill(tmp_path / "set", [source], part=0, num_parts=1 if whole else 2) == whole
    before = contents(tmp_path / "set")
    with pytest.raises(ConfigError, match=rf"was prepared with other data settings \({key}\); remove it"):
        prepare(
            tmp_path / "set",
            [replace(source, **change.get("sources", {}))],
            replace(cheap_encoders(), **change.get("encoders", {})),
            replace(BUCKETS, **change.get("buckets", {})),
            encode_batch=3,
            max_bad_share=0.01,
        )
    assert contents(tmp_path / "set") == before


def test_weights_of_sources_may_change_after_the_set_was_made(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "data", num=4)
    assert fill(tmp_path / "set", [source])
    assert fill(tmp_path / "set", [replace(source, weight=3.0)])
    check_choices(tmp_path / "set", [replace(source, weight=3.0)], BUCKETS, torch.float16)
    with pytest.raises(ConfigError, match=r"other data settings \(sources\)"):
        check_choices(tmp_path / "set", [replace(source, share=0.5)], BUCKETS, torch.float16)


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "thesis.txt").write_text("precious")
    with pytest.raises(ConfigError, match=r"set: holds other files; set data.store to a new or empty folder"):
        fill(tmp_path / "set", [jsonl(tmp_path / "data")])
    assert contents(tmp_path / "set") == {"thesis.txt": b"precious"}


def test_prompts_that_are_too_long_for_the_encoder_are_counted_by_source(tmp_path: Path) -> None:
    text = SD3.load_encoder(embedded("sd35"), max_sequence_length=14, dtype=torch.float32, device="cpu")
    sources = [jsonl(tmp_path / "data", num=6), replace(jsonl(tmp_path / "other", num=4), name="other")]
    for source, lengths in zip(sources, ((14, 14, 14, 15, 13, 2), (13, 13, 3, 1)), strict=True):  # and an end of text
        rows = zip(files.read_rows(Path(source.path)), lengths, strict=True)
        files.write_json(Path(source.path), [row | {"prompt": " ".join(["red"] * length)} for row, length in rows])
    assert [text.cuts(" ".join(["red"] * length)) for length in (13, 14)] == [False, True]
    assert fill(tmp_path / "set", sources, replace(cheap_encoders(), cuts=text.cuts))
    found = json.loads((tmp_path / "set" / "statistics.json").read_text())["sources"]
    assert [one["lost"]["cut_prompts"] for one in found] == [2, 0]
    assert [one["lost"]["pairs"] for one in found] == [0, 0]
    assert "| cut prompts |" in (tmp_path / "set" / "statistics.md").read_text()


@pytest.fixture
def made(tmp_path: Path) -> Path:
    assert fill(tmp_path / "set", [jsonl(tmp_path / "data")])
    return tmp_path / "set"


def test_torn_files_are_named(made: Path) -> None:
    rows = torch.arange(2)
    store = PreferenceStore(made)
    shard = made / "samples" / "00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"samples/00000.safetensors: truncated or damaged"):
        store.tensors("latents", rows)
    text = made / "conditions" / "00000.safetensors"
    text.unlink()
    with pytest.raises(CheckpointError, match=r"conditions/00000.safetensors: this file is missing"):
        store.conditions(rows)
    tables = made / "tables.safetensors"
    tables.write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match=r"tables.safetensors: not a safetensors file"):
        PreferenceStore(made)


def test_tables_that_lack_a_column_are_named(made: Path) -> None:
    tables = load_file(made / "tables.safetensors")
    del tables["pair_weight"]
    save_file(tables, made / "tables.safetensors")
    with pytest.raises(CheckpointError, match=r"tables.safetensors: has no pair_weight"):
        PreferenceStore(made)


def test_store_json_must_be_there_and_of_this_version(made: Path) -> None:
    info = json.loads((made / "store.json").read_text())
    (made / "store.json").write_text(json.dumps(info | {"version": 2}))
    with pytest.raises(CheckpointError, match=r"must say format 'flowrl_preferences' and version 1; prepare it again"):
        PreferenceStore(made)
    (made / "store.json").write_text(json.dumps({key: value for key, value in info.items() if key != "holds"}))
    with pytest.raises(CheckpointError, match=r"missing keys \['holds'\], unknown keys \[\]"):
        PreferenceStore(made)
    (made / "store.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"store.json: not valid JSON"):
        PreferenceStore(made)
    (made / "store.json").unlink()
    with pytest.raises(CheckpointError, match=r"not a prepared preference set, or not a whole one"):
        PreferenceStore(made)


def test_what_a_set_does_not_hold_is_said(made: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds latents, not pixels; prepare it again"):
        PreferenceStore(made).tensors("pixels", torch.arange(1))


def test_a_start_whose_scan_fails_leaves_the_folder_free(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nope.jsonl"):
        fill(tmp_path / "set", [DataSource(format="jsonl", path=str(tmp_path / "nope.jsonl"))])
    assert fill(tmp_path / "set", [jsonl(tmp_path / "data")])


def test_of_parts_with_other_settings_the_first_to_have_scanned_decides(tmp_path: Path) -> None:
    mine, other = {"dtype": "torch.bfloat16"}, {"dtype": "torch.float16"}
    check_folder(tmp_path, mine)
    check_folder(tmp_path, other)  # both scan at the same time, and find the same
    settle(tmp_path, mine, "digest")
    with pytest.raises(ConfigError, match=r"was prepared with other data settings \(dtype\)"):
        settle(tmp_path, other, "digest")
    with pytest.raises(ConfigError, match=r"was prepared with other data settings \(dtype\)"):
        check_folder(tmp_path, other)  # and one that comes later need not scan
    with pytest.raises(ConfigError, match=r"the sources are not what they were when this set was begun"):
        settle(tmp_path, mine, "another digest")
    settle(tmp_path, mine, "digest")
    assert json.loads((tmp_path / "settings.json").read_text()) == mine | {"scan": "digest"}


def swap_labels(file: Path) -> None:
    rows = files.read_rows(file)
    files.write_json(file, [row | {"preferred": row["rejected"], "rejected": row["preferred"]} for row in rows])


def test_a_set_whose_labels_were_swapped_in_its_source_is_not_used(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "data")
    assert fill(tmp_path / "set", [source])
    check_files(tmp_path / "set", [source])
    size = Path(source.path).stat().st_size
    swap_labels(Path(source.path))
    assert Path(source.path).stat().st_size == size
    says = rf"set: {source.path} has changed since this set was prepared; remove it to prepare anew, or, to use"
    with pytest.raises(ConfigError, match=says):
        check_files(tmp_path / "set", [source])
    with pytest.raises(ConfigError, match=says):
        fill(tmp_path / "set", [source])


def test_a_source_that_was_copied_or_is_gone_leaves_its_set_usable(tmp_path: Path) -> None:
    sources = [jsonl(tmp_path / "data"), replace(jsonl(tmp_path / "more"), name="more")]
    assert fill(tmp_path / "set", sources)
    os.utime(sources[0].path, (1, 1))
    check_files(tmp_path / "set", sources)
    Path(sources[0].path).unlink()
    check_files(tmp_path / "set", sources)
    assert fill(tmp_path / "set", sources)
    swap_labels(Path(sources[1].path))
    with pytest.raises(ConfigError, match=r"more/pairs.jsonl has changed"):
        check_files(tmp_path / "set", sources)


def test_files_of_a_pattern_that_come_or_go_are_named(tmp_path: Path) -> None:
    first, *others = sorted(files.write_pick_a_pic(tmp_path / "pick", seed=4).iterdir())
    extra = first.with_name("zz.parquet")
    source = DataSource(format="pick_a_pic", path=f"{first.parent}/*.parquet")
    assert fill(tmp_path / "set", [source])
    shutil.copy(first, extra)
    with pytest.raises(ConfigError, match=r"zz.parquet has come since"):
        check_files(tmp_path / "set", [source])
    extra.unlink()
    check_files(tmp_path / "set", [source])
    first.unlink()
    with pytest.raises(ConfigError, match=rf"{first.name} has gone since"):
        check_files(tmp_path / "set", [source])
    for other in others:
        other.unlink()
    check_files(tmp_path / "set", [source])


def test_a_large_file_of_another_time_may_be_newer_until_its_time_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_files, "_DIGESTED", 10)
    source = jsonl(tmp_path / "data")
    os.utime(source.path, (1_700_000_000, 1_700_000_000))
    assert fill(tmp_path / "set", [source])
    check_files(tmp_path / "set", [source])
    os.utime(source.path, (1_700_000_600, 1_700_000_600))
    says = rf"{source.path} may have changed \(.*: touch -d @1700000000 {source.path}\) since this set was prepared"
    with pytest.raises(ConfigError, match=says):
        check_files(tmp_path / "set", [source])
    subprocess.run(["touch", "-d", "@1700000000", source.path], check=True)
    check_files(tmp_path / "set", [source])
    files.add_rows(Path(source.path), {})
    with pytest.raises(ConfigError, match=r"pairs.jsonl has changed"):
        check_files(tmp_path / "set", [source])


def test_numbers_that_are_not_finite_are_named_by_file(made: Path) -> None:
    for kind, name in (("samples", "latents"), ("conditions", "embeds")):
        store = PreferenceStore(made)
        store.check_finite(torch.arange(16))
        shard = made / kind / "00000.safetensors"
        whole = shard.read_bytes()
        tensors = load_file(shard)
        tensors[name][3].fill_(float("nan"))
        save_file(tensors, shard)
        store = PreferenceStore(made)
        others = torch.arange(16)
        of_row = store._row if kind == "samples" else store.prompt
        hit = (of_row == 3) & (store.shard == 0) if kind == "samples" else of_row == 3
        store.check_finite(others[~hit])
        with pytest.raises(CheckpointError, match=rf"{kind}/00000.safetensors: damaged: row 3 holds numbers that are"):
            store.check_finite(others)
        shard.write_bytes(whole)


def test_pairs_in_common_are_known_by_their_pixels(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "data", num=8)
    rows = files.read_rows(Path(train.path))
    # Copied images under other names, the first pair with its label swapped; a prompt with new images; a new prompt.
    held = DataSource(format="jsonl", path=str(files.write_jsonl(tmp_path / "held", num=8, seed=9)))
    others = files.read_rows(Path(held.path))
    for row in rows[:2]:
        for key in ("preferred", "rejected"):
            shutil.copy(tmp_path / "data" / row[key], tmp_path / "held" / f"{Path(row[key]).stem}-copy.jpg")
    copies = [
        {"prompt": row["prompt"]} | {key: f"{Path(row[key]).stem}-copy.jpg" for key in ("preferred", "rejected")}
        for row in rows[:2]
    ]
    copies[0] |= {"preferred": copies[0]["rejected"], "rejected": copies[0]["preferred"]}
    last = rows[-1]["prompt"]
    fresh = [others[2] | {"prompt": last, "tie": False}, others[3] | {"prompt": "a new prompt", "tie": False}]
    files.write_json(Path(held.path), [*copies, *fresh])
    assert fill(tmp_path / "train", [train])
    assert fill(tmp_path / "validation", [held])
    known, measured = PreferenceStore(tmp_path / "train"), PreferenceStore(tmp_path / "validation")
    found = overlap(known, known.pairs, measured, measured.pairs)
    texts = {row["prompt"] for row in copies} | {last}
    assert found == Overlap(prompts=len(texts), of_prompts=len(texts) + 1, pairs=2, of_pairs=4)
    assert found.words.startswith("2 of the 4 validation pairs are also trained on")
    only_new = overlap(known, known.pairs, measured, measured.pairs.select(torch.tensor([3])))
    assert only_new == Overlap(prompts=0, of_prompts=1, pairs=0, of_pairs=1)
    assert only_new.words == ""
    same_prompt = overlap(known, known.pairs, measured, measured.pairs.select(torch.tensor([2])))
    assert same_prompt.words == (
        "1 of the 1 prompts of the validation pairs are also trained on, none of the 1 pairs is"
    )


@pytest.mark.parametrize("buckets", [{}, {"image_size": 512, "step": 0, "max_aspect": 2.0}])
def test_settings_without_buckets_are_named(tmp_path: Path, buckets: dict[str, float]) -> None:
    (tmp_path / "settings.json").write_text(json.dumps({"buckets": buckets} if buckets else {}))
    with pytest.raises(CheckpointError, match=r"settings.json: must say the buckets of the images"):
        prepared_buckets(tmp_path)


def test_a_set_made_anew_has_another_digest_only_where_its_sources_changed(tmp_path: Path, small_shards: None) -> None:
    source = jsonl(tmp_path / "data", num=8)
    path = Path(source.path)
    rows = files.read_rows(path)

    def digest_of(name: str) -> str:
        assert fill(tmp_path / name, [source])
        return PreferenceStore(tmp_path / name).digest

    first = digest_of("first")
    assert digest_of("again") == first
    flipped = rows[0] | {"preferred": rows[0]["rejected"], "rejected": rows[0]["preferred"]}
    files.write_json(path, [flipped, *rows[1:]])
    assert digest_of("label") != first
    files.write_json(path, [rows[0] | {"prompt": "another"}, rows[1] | {"prompt": "another"}, *rows[2:]])
    assert digest_of("prompt") != first
    files.write_json(path, rows)
    image = path.parent / rows[0]["preferred"]
    files.picture(seed=99).save(image)
    assert digest_of("image") != first


def test_a_set_that_was_prepared_anew_has_another_stamp(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "data", num=4)
    assert fill(tmp_path / "set", [source])
    before = PreferenceStore(tmp_path / "set").stamp
    assert PreferenceStore(tmp_path / "set").stamp == before
    shutil.rmtree(tmp_path / "set")
    assert fill(tmp_path / "set", [source], cheap_encoders(image=lambda pixels: brightness(1 - pixels)))
    assert PreferenceStore(tmp_path / "set").stamp != before
