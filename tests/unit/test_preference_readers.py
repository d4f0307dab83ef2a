"""Readers of the published preference formats: what each row becomes, and which rows are refused and why."""

from __future__ import annotations

import json
import sys
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from flowrl.base.config_tree import ConfigError
from flowrl.base.errors import UserError
from rewards.data.comparison import BadRow, Comparison, ImageRef, Pair, Row, SkippedRow, fault_of, pairs_of
from rewards.data.images import ImageReader
from rewards.data.source import DataSource, check_source, open_source
from tests import preference_files as files

IMAGES = (ImageRef(path="/a.png"), ImageRef(path="/b.png"))
COMPARISON = Comparison(prompt="a cat", images=IMAGES, ranks=(0.0, 1.0), origin="here")


def comparisons(rows: Iterator[Row]) -> list[Comparison]:
    """The rows, all of which must be comparisons."""
    found = list(rows)
    assert [row for row in found if not isinstance(row, Comparison)] == []
    return [row for row in found if isinstance(row, Comparison)]


def bad(rows: Iterator[Row]) -> list[tuple[str, str]]:
    """Origin and reason of the rows that are refused."""
    return [(row.origin, row.reason) for row in rows if isinstance(row, BadRow)]


def test_hpdv3_prefers_the_first_path(tmp_path: Path) -> None:
    path = files.write_hpdv3(tmp_path, num=4)
    raw = files.read_rows(path)
    found = comparisons(open_source(DataSource(format="hpdv3", path=str(path))))
    assert found[0] == Comparison(
        prompt="a cat number 0",
        images=(ImageRef(path=str(tmp_path / raw[0]["path1"])), ImageRef(path=str(tmp_path / raw[0]["path2"]))),
        ranks=(0.0, 1.0),
        origin="train.json[0]",
        confidence=0.6,
    )
    assert [row.confidence for row in found] == [0.6, 0.7, 0.8, 1.0]  # the last is null


def test_hpdv2_is_read_in_both_its_shapes(tmp_path: Path) -> None:
    path = files.write_json(
        tmp_path / "train.json",
        [
            {"human_preference": [1, 0], "prompt": "p", "file_path": ["a.jpg", "b.jpg"]},
            {"human_preference": [0, 1], "prompt": "p", "file_path": ["a.jpg", "b.jpg"]},
            {"rank": [3, 1, 2], "prompt": "q", "image_path": ["a.jpg", "b.jpg", "c.jpg"], "raw_annotations": [[1]]},
        ],
    )
    found = comparisons(open_source(DataSource(format="hpdv2", path=str(path), images=str(tmp_path / "train"))))
    assert [pairs_of(row) for row in found[:2]] == [
        (Pair(winner=0, loser=1, is_tie=False),),
        (Pair(winner=1, loser=0, is_tie=False),),
    ]
    assert found[2].ranks == (3.0, 1.0, 2.0)
    assert found[2].images[1].path == str(tmp_path / "train" / "b.jpg")


def test_image_reward_ranks_the_lower_the_better(tmp_path: Path) -> None:
    path = files.write_json(
        tmp_path / "test.json", [{"id": "1", "prompt": "p", "generations": ["a", "b", "c"], "ranking": [2, 1, 2]}]
    )
    (row,) = comparisons(open_source(DataSource(format="image_reward", path=str(path))))
    assert pairs_of(row) == (
        Pair(winner=1, loser=0, is_tie=False),
        Pair(winner=0, loser=2, is_tie=True),
        Pair(winner=1, loser=2, is_tie=False),
    )


def test_the_plain_format_has_pairs_ties_and_rankings(tmp_path: Path) -> None:
    path = files.write_json(
        tmp_path / "pairs.jsonl",
        [
            {"prompt": "p", "preferred": "/x/a.png", "rejected": "b.png", "confidence": 0.7, "id": 3},
            {"prompt": "p", "preferred": "c.png", "rejected": "d.png", "tie": True, "category": "people"},
            {"prompt": "p", "images": ["a.png", "b.png", "../c.png"], "ranks": [2, 1, 3], "confidence": None},
        ],
    )
    pair, tie, ranking = comparisons(open_source(DataSource(format="jsonl", path=str(path))))
    assert [image.path for image in pair.images] == ["/x/a.png", str(tmp_path / "b.png")]
    assert (pair.ranks, pair.confidence, pair.category, pair.origin) == ((0.0, 1.0), 0.7, "", "pairs.jsonl:1")
    assert (tie.ranks, tie.confidence, tie.category) == ((0.0, 0.0), 1.0, "people")
    assert (ranking.ranks, ranking.images[2].path) == ((2.0, 1.0, 3.0), str(tmp_path.parent / "c.png"))


def test_pick_a_pic_weighs_prompts_alike_and_skips_what_has_no_label(tmp_path: Path) -> None:
    folder = files.write_pick_a_pic(tmp_path, num=16)
    rows = list(open_source(DataSource(format="pick_a_pic", path=str(folder))))
    assert [type(row) for row in rows].count(Comparison) == 14
    assert [row for row in rows if isinstance(row, SkippedRow)] == [
        SkippedRow(origin=f"train-0000{part}-of-00002.parquet[6]", reason="no label") for part in (0, 1)
    ]
    first, tie, second_file = rows[0], rows[3], rows[9]
    assert isinstance(first, Comparison)
    assert isinstance(tie, Comparison)
    assert isinstance(second_file, Comparison)
    raw = files.pick_a_pic_row(0)
    assert first.ranks == (1 - float(str(raw["label_0"])), 1 - float(str(raw["label_1"])))
    assert (first.weight, first.prompt) == (0.5, "a cat number 0")
    assert first.images[1].identity == "uid-0-0-1"
    assert pairs_of(tie) == (Pair(winner=0, loser=1, is_tie=True),)
    assert str(second_file.images[0]) == f"{folder}/train-00001-of-00002.parquet[1].jpg_0"


def test_pick_a_pic_rows_that_make_no_sense_are_named(tmp_path: Path) -> None:
    good = files.pick_a_pic_row(0)
    broken: list[dict[str, object]] = [
        good | {"label_0": 1.0, "label_1": 1.0},
        good | {"label_0": None},
        good | {"label_0": 0.3, "label_1": 0.7},
        good | {"caption": None},
        good | {"num_example_per_prompt": 0},
        good | {"are_different": False},
    ]
    path = files.write_parquet(tmp_path / "pairs.parquet", broken)
    rows = list(open_source(DataSource(format="pick_a_pic", path=str(path))))
    assert bad(iter(rows)) == [
        ("pairs.parquet[0]", "the labels must be 0 and 1 or both 0.5, got 1.0 and 1.0"),
        ("pairs.parquet[1]", f"the labels must be 0 and 1 or both 0.5, got None and {good['label_1']}"),
        ("pairs.parquet[2]", "the labels must be 0 and 1 or both 0.5, got 0.3 and 0.7"),
        ("pairs.parquet[3]", "caption must be text"),
        ("pairs.parquet[4]", "num_example_per_prompt must be at least 1, got 0"),
    ]
    assert rows[5] == SkippedRow(origin="pairs.parquet[5]", reason="the images are the same")


def test_which_parquet_files_are_meant(tmp_path: Path) -> None:
    folder = files.write_pick_a_pic(tmp_path, num=4)
    files.write_parquet(folder / "test-00000-of-00001.parquet", [files.pick_a_pic_row(0)])
    with pytest.raises(UserError, match=r"holds several splits \(test, train\); give a pattern, such as .*/test-\*"):
        list(open_source(DataSource(format="pick_a_pic", path=str(folder))))
    assert len(list(open_source(DataSource(format="pick_a_pic", path=f"{folder}/train-*")))) == 4
    with pytest.raises(UserError, match="there is no parquet file"):
        list(open_source(DataSource(format="pick_a_pic", path=f"{folder}/valid-*")))
    with pytest.raises(UserError, match=r"absent\.parquet: no such file"):
        list(open_source(DataSource(format="pick_a_pic", path=str(tmp_path / "absent.parquet"))))


def test_parquet_without_the_columns_or_without_pyarrow_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = files.write_parquet(tmp_path / "pairs.parquet", [{"caption": "p", "label_0": 1.0}])
    with pytest.raises(UserError, match="has no column 'label_1'; it has caption, label_0"):
        list(open_source(DataSource(format="pick_a_pic", path=str(path))))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r'pip install "flowrl\[parquet\]"'):
        list(open_source(DataSource(format="pick_a_pic", path=str(path))))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([1, 2], r"must be a JSON object, got [1, 2]"),
        ("text", "must be a JSON object, got 'text'"),
        ({"path1": "a", "path2": "b"}, "has no 'prompt'"),
        ({"prompt": None, "path1": "a", "path2": "b"}, "prompt must be text, got nothing"),
        ({"prompt": "p", "path1": ["a"], "path2": "b"}, "path1 must be text, got ['a']"),
        ({"prompt": "p", "path1": "", "path2": "b"}, "an image path is empty"),
        ({"prompt": "p", "path1": "a", "path2": "b", "confidence": "x"}, "confidence must be a finite number, got 'x'"),
        (
            {"prompt": "p", "path1": "a", "path2": "b", "confidence": True},
            "confidence must be a finite number, got True",
        ),
    ],
)
@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_a_row_that_does_not_fit_is_named_and_the_next_is_read(
    tmp_path: Path, values: object, reason: str, ending: str
) -> None:
    path = files.add_rows(files.write_hpdv3(tmp_path, num=1), values, files.read_rows(tmp_path / "train.json")[0])
    path = files.write_json(tmp_path / f"copy.{ending}", json.loads(path.read_text()))
    rows = list(open_source(DataSource(format="hpdv3", path=str(path))))
    origin = "copy.json[1]" if ending == "json" else "copy.jsonl:2"
    assert bad(iter(rows)) == [(origin, reason)]
    assert [isinstance(row, Comparison) for row in rows] == [True, False, True]


def test_half_a_character_is_no_text(tmp_path: Path) -> None:
    row = {"prompt": "\ud83d", "preferred": "a", "rejected": "b"}
    path = files.write_json(tmp_path / "pairs.jsonl", [row, row | {"prompt": "\ud83d\ude00"}])
    rows = list(open_source(DataSource(format="jsonl", path=str(path))))
    assert bad(iter(rows)) == [("pairs.jsonl:1", "prompt holds half a character (a lone surrogate)")]
    assert isinstance(rows[1], Comparison)
    assert rows[1].prompt == "\U0001f600"


def test_hpdv2_rows_of_neither_shape_and_lists_of_other_things_are_named(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "path1": "a"},
        {"prompt": "p", "file_path": "a.jpg", "human_preference": [1, 0]},
        {"prompt": "p", "image_path": ["a.jpg", 3], "rank": [1, 2]},
        {"prompt": "p", "image_path": ["a.jpg", "b.jpg"], "rank": [1, "2"]},
    ]
    path = files.write_json(tmp_path / "test.json", rows)
    assert bad(open_source(DataSource(format="hpdv2", path=str(path)))) == [
        ("test.json[0]", "has neither 'human_preference' (train.json) nor 'rank' (test.json)"),
        ("test.json[1]", "file_path must be a list, got 'a.jpg'"),
        ("test.json[2]", "image_path[1] must be text, got 3"),
        ("test.json[3]", "rank[1] must be a finite number, got '2'"),
    ]


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.95])
def test_an_array_that_is_cut_off_gives_the_rows_before_and_then_says_where(tmp_path: Path, cut: float) -> None:
    path = files.write_hpdv3(tmp_path, num=20)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * cut)])
    whole = content[: int(len(content) * cut)].count(b"}")
    rows = open_source(DataSource(format="hpdv3", path=str(path)))
    assert [type(next(rows)) for _ in range(whole)] == [Comparison] * whole
    says = rf"train\.json: cut off or damaged after {whole} whole rows, before byte \d+ of \d+ \(.*\); copy it again"
    with pytest.raises(UserError, match=says):
        next(rows)


@pytest.mark.parametrize("content", [b"", b"  \n", b"[]", b"\xef\xbb\xbf[]"])
def test_an_empty_file_has_no_rows(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "train.json").write_bytes(content)
    assert list(open_source(DataSource(format="hpdv3", path=str(tmp_path / "train.json")))) == []


def test_a_byte_order_mark_and_blank_lines_are_no_rows(tmp_path: Path) -> None:
    path = files.write_jsonl(tmp_path, num=2)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\r\n"))
    assert len(comparisons(open_source(DataSource(format="jsonl", path=str(path))))) == 2


def test_a_line_that_is_not_json_is_named_and_the_next_is_read(tmp_path: Path) -> None:
    path = files.write_jsonl(tmp_path, num=2)
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], b"{oops", b"\xff\xfe", b"[" * 100_000, lines[1], lines[0][:20]]))
    rows = list(open_source(DataSource(format="jsonl", path=str(path))))
    assert [isinstance(row, Comparison) for row in rows] == [True, False, False, False, True, False]
    assert [(origin, reason[:18]) for origin, reason in bad(iter(rows))] == [
        (f"pairs.jsonl:{line}", "not a line of JSON") for line in (2, 3, 4, 6)
    ]


def test_a_file_that_is_missing_or_a_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.json: cannot be read: No such file"):
        list(open_source(DataSource(format="hpdv3", path=str(tmp_path / "absent.json"))))
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        list(open_source(DataSource(format="hpdv3", path=str(tmp_path))))


def test_reading_holds_no_more_for_more_rows(tmp_path: Path) -> None:
    row = json.dumps({"prompt": "a prompt of usual length, in good light " * 4, "path1": "a" * 60, "path2": "b" * 60})

    def peak(count: int) -> int:
        path = tmp_path / "train.json"
        with path.open("w") as file:
            file.write("[" + row)
            file.writelines(f",\n{row}" for _ in range(count - 1))
            file.write("]")
        tracemalloc.start()
        assert sum(1 for _ in open_source(DataSource(format="hpdv3", path=str(path)))) == count
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(8000) < peak(2000) + 200_000 < 4_000_000


def test_pairs_of_a_ranking_go_from_better_to_worse() -> None:
    ranking = replace(COMPARISON, images=(*IMAGES, ImageRef(path="/c.png")), ranks=(2.0, 2.0, 1.0))
    assert pairs_of(ranking) == (
        Pair(winner=0, loser=1, is_tie=True),
        Pair(winner=2, loser=0, is_tie=False),
        Pair(winner=2, loser=1, is_tie=False),
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, ""),
        ({"prompt": " \n"}, "the prompt is empty"),
        ({"images": IMAGES[:1], "ranks": (0.0,)}, "a comparison needs two images or more, got 1"),
        ({"ranks": (0.0, 1.0, 2.0)}, "there must be a rank for each image, got 3 for 2"),
        ({"ranks": (0.0, float("nan"))}, "a rank is not a finite number"),
        ({"images": (IMAGES[0], IMAGES[0])}, "an image is compared with itself"),
        ({"confidence": 1.5}, "the confidence must lie in [0, 1], got 1.5"),
        ({"weight": 0.0}, "the weight must be over 0, got 0"),
    ],
)
def test_a_comparison_that_cannot_be_used_says_why(changes: dict[str, object], says: str) -> None:
    assert fault_of(replace(COMPARISON, **changes)) == says


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (DataSource(format="hpdv3", path=""), r"data\.sources\[1\]\.path must name a file, got ''"),
        (DataSource(format="hpdv3", path="x", weight=0.0), r"weight must be over 0; leave the source out .* got 0\.0"),
        (DataSource(format="hpdv3", path="x", min_confidence=95), r"min_confidence must lie in \[0, 1\], got 95"),
        (DataSource(format="hpdv3", path="x", max_pairs_per_prompt=-1), "max_pairs_per_prompt must be at least 0"),
        (DataSource(format="hpdv3", path="x", share=0.0), r"share must lie in \(0, 1\], got 0\.0"),
        (DataSource(format="hpdv3", path="x", min_area=-4), "min_area must be at least 0 pixels, got -4"),
        (DataSource(format="pick_a_pic", path="x", images="y"), "images must be empty: pick_a_pic holds its images"),
    ],
)
def test_a_source_out_of_range_names_its_key(source: DataSource, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as raised:
        check_source(source, "data.sources[1]")
    assert str(raised.value).startswith("data.sources[1].")


@dataclass
class _Config:
    sources: list[DataSource] = field(default_factory=list)


def test_a_source_stands_in_a_configuration() -> None:
    yaml = OmegaConf.create("sources: [{format: hpdv3, path: train.json, share: 0.5, categories: [people]}]")
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(_Config), yaml))
    assert isinstance(config, _Config)
    assert config.sources == [DataSource(format="hpdv3", path="train.json", share=0.5, categories=["people"])]
    check_source(config.sources[0], "sources[0]")


@pytest.mark.parametrize("format_", ["hpdv3", "hpdv2", "image_reward", "jsonl"])
def test_in_the_written_sets_the_brighter_image_is_preferred(tmp_path: Path, format_: str) -> None:
    write = {
        "hpdv3": files.write_hpdv3,
        "hpdv2": files.write_hpdv2_test,
        "image_reward": files.write_image_reward,
        "jsonl": files.write_jsonl,
    }
    path = write[format_](tmp_path, num=4)
    outcomes: Counter[bool] = Counter()
    for row in comparisons(open_source(DataSource(format=format_, path=str(path)))):
        light = [ImageReader().pixels(image).float().mean().item() for image in row.images]
        outcomes.update(light[pair.winner] > light[pair.loser] for pair in pairs_of(row) if not pair.is_tie)
    assert outcomes[False] == 0
    assert outcomes[True] >= 3
