"""The scan of a mixture: filters, broken rows and images, contradictions, statistics, and what it costs."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from flowrl.base.errors import UserError
from rewards.data.comparison import Pair
from rewards.data.images import ImageReader
from rewards.data.mixture import MixtureScan, ScannedComparison
from rewards.data.source import DataSource
from rewards.data.statistics import SourceStatistics
from tests import preference_files as files


def scanned(
    *sources: DataSource, max_bad_share: float = 0.01
) -> tuple[list[ScannedComparison], list[SourceStatistics]]:
    """What a scan gives, and its statistics by source."""
    scan = MixtureScan(sources, max_bad_share=max_bad_share)
    found = list(scan)
    statistics = list(scan.statistics.sources)
    for one in statistics:
        assert one.rows == one.comparisons + sum(one.dropped.values())
    return found, statistics


def hpdv3(folder: Path, num: int = 8) -> DataSource:
    return DataSource(format="hpdv3", path=str(files.write_hpdv3(folder, num=num)))


def jsonl(path: Path) -> DataSource:
    return DataSource(format="jsonl", path=str(path))


def origins(found: list[ScannedComparison]) -> list[str]:
    return [one.comparison.origin for one in found]


def prompts(found: list[ScannedComparison]) -> set[str]:
    return {one.comparison.prompt for one in found}


def test_every_format_comes_through_with_sizes_and_pairs(tmp_path: Path) -> None:
    sources = (
        hpdv3(tmp_path / "hpdv3"),
        DataSource(format="hpdv2", path=str(files.write_hpdv2_train(tmp_path / "hpdv2")), name="golden"),
        DataSource(format="hpdv2", path=str(files.write_hpdv2_test(tmp_path / "hpdv2_test"))),
        DataSource(format="pick_a_pic", path=str(files.write_pick_a_pic(tmp_path / "pick", num=16)), weight=0.5),
        DataSource(format="image_reward", path=str(files.write_image_reward(tmp_path / "reward"))),
        jsonl(files.write_jsonl(tmp_path / "plain")),
    )
    found, statistics = scanned(*sources)
    assert Counter(one.source for one in found) == {0: 8, 1: 8, 2: 4, 3: 14, 4: 4, 5: 8}
    assert [one.source for one in found] == sorted(one.source for one in found)
    assert [one.name for one in statistics] == ["hpdv3", "golden", "hpdv2", "pick_a_pic", "image_reward", "jsonl"]
    assert [(one.pairs, one.ties) for one in statistics] == [(8, 0), (8, 0), (24, 0), (10, 4), (20, 4), (6, 2)]
    assert [one.images for one in statistics] == [16, 16, 16, 28, 16, 16]
    assert [one.prompts for one in statistics] == [4, 4, 2, 8, 2, 4]
    assert statistics[3].dropped == {"no preference in it": 2}
    assert statistics[3].weight == 0.5
    reader = ImageReader()
    for one in found:
        assert one.sizes == tuple(tuple(reader.pixels(image).shape[1:]) for image in one.comparison.images)
        assert one.sizes[0] in files.SIZES


def test_filters_take_out_what_they_say(tmp_path: Path) -> None:
    source = hpdv3(tmp_path, num=16)
    found, (one,) = scanned(replace(source, min_confidence=0.8))
    assert {row.comparison.confidence >= 0.8 for row in found} == {True}
    assert one.dropped == {"min_confidence": 6}  # of 8 below; two of them are null, which counts as sure
    plain = jsonl(files.write_jsonl(tmp_path / "plain", num=16))
    found, (one,) = scanned(replace(plain, categories=["animal"]))
    assert {row.comparison.category for row in found} == {"animal"}
    assert one.dropped == {"categories": 8}
    assert one.categories == {"animal": 8}
    found, (one,) = scanned(replace(plain, keep_ties=False))
    assert (one.pairs, one.ties, one.dropped) == (12, 0, {"keep_ties": 4})
    found, (one,) = scanned(replace(plain, min_area=64 * 64))
    assert {size for row in found for size in row.sizes} == {(64, 64)}
    assert one.dropped == {"min_area": 10}


def test_ties_inside_a_ranking_go_and_the_rest_stays(tmp_path: Path) -> None:
    source = DataSource(format="image_reward", path=str(files.write_image_reward(tmp_path, num=1)))
    ((kept,), _), ((strict,), (one,)) = scanned(source), scanned(replace(source, keep_ties=False))
    assert (len(kept.pairs), len(strict.pairs)) == (6, 5)
    assert {pair.is_tie for pair in strict.pairs} == {False}
    assert strict.comparison == kept.comparison
    assert (one.pairs, one.ties) == (5, 0)


def test_a_share_takes_whole_prompts_and_a_smaller_one_a_part_of_them(tmp_path: Path) -> None:
    source = hpdv3(tmp_path, num=80)
    everything, half, quarter = (scanned(replace(source, share=share))[0] for share in (1.0, 0.5, 0.25))
    assert prompts(quarter) < prompts(half) < prompts(everything)
    assert 10 <= len(prompts(half)) <= 30
    assert Counter(row.comparison.prompt for row in half) == dict.fromkeys(prompts(half), 2)


def test_at_most_so_many_pairs_of_a_prompt(tmp_path: Path) -> None:
    source = hpdv3(tmp_path / "pairs")  # two pairs of each prompt
    found, (one,) = scanned(replace(source, max_pairs_per_prompt=1))
    assert origins(found) == [f"train.json[{row}]" for row in (0, 2, 4, 6)]
    assert one.dropped == {"max_pairs_per_prompt": 4}
    ranking = DataSource(format="hpdv2", path=str(files.write_hpdv2_test(tmp_path / "rankings", num=2, num_images=5)))
    found, (one,) = scanned(replace(ranking, max_pairs_per_prompt=13))
    full, _ = scanned(ranking)
    assert [len(row.pairs) for row in found] == [10, 3]
    assert set(found[1].pairs) < set(full[1].pairs)
    assert len({pair.winner for pair in found[1].pairs} | {pair.loser for pair in found[1].pairs}) > 2


def test_a_broken_image_does_not_use_up_the_pairs_of_its_prompt(tmp_path: Path) -> None:
    source = hpdv3(tmp_path)
    (tmp_path / files.read_rows(Path(source.path))[0]["path1"]).unlink()
    found, (one,) = scanned(replace(source, max_pairs_per_prompt=1), max_bad_share=0.5)
    assert origins(found)[0] == "train.json[1]"
    assert one.dropped == {"broken image": 1, "max_pairs_per_prompt": 3}


def test_broken_rows_and_images_are_counted_and_named(tmp_path: Path) -> None:
    path = files.write_hpdv3(tmp_path)
    good = files.read_rows(path)[0]
    (tmp_path / "torn.png").write_bytes(b"not an image")
    files.add_rows(
        path,
        good | {"prompt": "  "},
        good | {"path2": good["path1"]},
        good | {"path1": "absent.png"},
        "text",
        good | {"path2": "torn.png"},
        good | {"prompt": "another", "path2": "torn.png"},
    )
    found, (one,) = scanned(DataSource(format="hpdv3", path=str(path)), max_bad_share=0.5)
    assert len(found) == 8
    assert one.dropped == {"broken row": 3, "broken image": 3}
    torn = f"{tmp_path}/torn.png: not an image of a known kind (JPEG, PNG, WEBP, BMP, GIF)"
    assert one.first_bad == {
        "broken row": (
            "train.json[8]: the prompt is empty",
            "train.json[9]: an image is compared with itself",
            "train.json[11]: must be a JSON object, got 'text'",
        ),
        "broken image": (
            f"train.json[10]: {tmp_path}/absent.png: no such file",
            f"train.json[12]: {torn}",
            f"train.json[13]: {torn}",
        ),
    }


def test_no_more_than_twenty_broken_rows_are_named(tmp_path: Path) -> None:
    path = files.add_rows(files.write_jsonl(tmp_path, num=4), *[{"prompt": ""}] * 30)
    _, (one,) = scanned(jsonl(path), max_bad_share=1.0)
    assert one.dropped == {"broken row": 30}
    assert len(one.first_bad["broken row"]) == 20


def test_too_many_broken_rows_end_the_scan_with_the_first_of_them(tmp_path: Path) -> None:
    path = files.add_rows(files.write_jsonl(tmp_path, num=8), {}, {}, {}, {})
    says = (
        r"pairs\.jsonl: 4 of 12 rows are unusable \(broken row\), more than data\.max_bad_share = 0\.1; mend the data "
        r"or raise it\. The first: pairs\.jsonl:9: has no 'preferred'; pairs\.jsonl:10: .*; "
        r"pairs\.jsonl:11: has no [^;]*$"
    )
    with pytest.raises(UserError, match=says):
        scanned(jsonl(path), max_bad_share=0.1)
    assert len(scanned(jsonl(path), max_bad_share=4 / 12)[0]) == 8


def test_a_limit_of_broken_rows_names_no_broken_image(tmp_path: Path) -> None:
    path = files.write_jsonl(tmp_path, num=8)
    (tmp_path / files.read_rows(path)[0]["preferred"]).unlink()
    files.add_rows(path, {}, {}, {})
    with pytest.raises(UserError, match=r"3 of 11 rows are unusable \(broken row\).* The first: pairs\.jsonl:9: has"):
        scanned(jsonl(path), max_bad_share=0.2)


def test_a_missing_image_folder_ends_the_scan_after_a_thousand_rows(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{row}", "preferred": f"{row}.png", "rejected": f"{row}b.png"} for row in range(1500)]
    path = files.write_json(tmp_path / "pairs.jsonl", rows)
    says = r"1000 of 1000 rows .* \(broken image\).*; mend the data, correct the source's images, .*no such file"
    with pytest.raises(UserError, match=says):
        scanned(jsonl(path))


def test_few_images_of_a_small_share_are_decided_by_that_share(tmp_path: Path) -> None:
    path = files.write_hpdv3(tmp_path, num=80)
    for row in files.read_rows(path):
        (tmp_path / row["path1"]).unlink()
    source = DataSource(format="hpdv3", path=str(path), min_confidence=0.99)
    with pytest.raises(UserError, match=r"21 of 21 rows are unusable \(broken image\)"):
        scanned(source, max_bad_share=0.5)


def test_a_repeated_pair_is_dropped_and_a_contradicting_one_named(tmp_path: Path) -> None:
    path = files.write_jsonl(tmp_path, num=3)
    first, second, third = files.read_rows(path)
    swapped = {"prompt": second["prompt"], "preferred": second["rejected"], "rejected": second["preferred"]}
    files.add_rows(path, first, swapped, third | {"tie": True}, swapped | {"prompt": "another prompt"})
    found, (one,) = scanned(jsonl(path))
    assert origins(found) == [f"pairs.jsonl:{line}" for line in (1, 2, 3, 7)]
    assert one.dropped == {"repeated": 1, "contradicting": 2}
    assert (one.repeated_pairs, one.contradicting_pairs) == (1, 2)
    assert one.first_contradicting == (
        "pairs.jsonl:5: 1 of its pairs were labelled otherwise",
        "pairs.jsonl:6: 1 of its pairs were labelled otherwise",
    )
    assert one.first_bad == {}


def test_contradictions_are_found_across_sources_and_the_first_stays(tmp_path: Path) -> None:
    source = hpdv3(tmp_path, num=4)
    swapped = [row | {"path1": row["path2"], "path2": row["path1"]} for row in files.read_rows(Path(source.path))]
    other = files.write_json(tmp_path / "swapped.json", [*swapped[:2], files.read_rows(Path(source.path))[2]])
    extra = files.write_jsonl(tmp_path / "more", num=1)
    files.write_json(other, [*files.read_rows(other), {**swapped[0], "prompt": "new"}])
    found, (one, two, _) = scanned(source, DataSource(format="hpdv3", path=str(other)), jsonl(extra))
    assert (one.comparisons, two.comparisons) == (4, 1)
    assert two.dropped == {"repeated": 1, "contradicting": 2}
    assert found[4].comparison.prompt == "new"


def test_the_pairs_of_a_ranking_that_are_new_stay(tmp_path: Path) -> None:
    names, ranks = files.save_ranked(tmp_path, 0, 3, seed=0)
    best, middle, worst = files.best_first(names, ranks)
    rows = [
        {"prompt": "p", "preferred": best, "rejected": middle},
        {"prompt": "p", "preferred": worst, "rejected": middle},
        {"prompt": "p", "images": [best, middle, worst], "ranks": [1, 2, 3]},
    ]
    found, (one,) = scanned(jsonl(files.write_json(tmp_path / "pairs.jsonl", rows)))
    assert found[2].pairs == (Pair(winner=0, loser=2, is_tie=False),)
    assert (one.repeated_pairs, one.contradicting_pairs, one.dropped) == (1, 1, {})


def test_pictures_of_one_uid_are_one_image_wherever_they_lie(tmp_path: Path) -> None:
    row = files.pick_a_pic_row(0)
    swapped = row | {"label_0": row["label_1"], "label_1": row["label_0"]}
    path = files.write_parquet(tmp_path / "pairs.parquet", [row, swapped, row])
    _, (one,) = scanned(DataSource(format="pick_a_pic", path=str(path)))
    assert (one.comparisons, one.images, one.dropped) == (1, 2, {"repeated": 1, "contradicting": 1})


def test_a_source_of_which_nothing_is_left_says_what_took_it(tmp_path: Path) -> None:
    source = jsonl(files.write_jsonl(tmp_path, num=8))
    says = r"pairs\.jsonl: no comparison is left of 8 rows; taken out by: categories 4, min_area 4"
    with pytest.raises(UserError, match=says):
        scanned(replace(source, categories=["animal"], min_area=100_000))
    with pytest.raises(UserError, match=r"left of 0 rows; taken out by: the file holds none"):
        scanned(jsonl(files.write_json(tmp_path / "empty.jsonl", [])))


def test_each_iteration_reads_anew_and_alike(tmp_path: Path) -> None:
    scan = MixtureScan([hpdv3(tmp_path), jsonl(files.write_jsonl(tmp_path / "plain"))])
    assert list(scan) == list(scan)
    assert [one.comparisons for one in scan.statistics.sources] == [8, 8]


def test_histograms_count_kept_comparisons_and_each_image_once(tmp_path: Path) -> None:
    path = files.write_hpdv3(tmp_path, num=4)
    row = files.read_rows(path)[0]
    files.picture(height=300, width=300).save(tmp_path / "large.png")
    files.picture(height=512, width=512).save(tmp_path / "edge.png")
    files.add_rows(path, row | {"path2": "large.png", "confidence": 0.2}, row | {"path2": "edge.png"})
    _, (one,) = scanned(DataSource(format="hpdv3", path=str(path)))
    assert dict(one.side.rows()) == {
        "< 256": 8,
        "256 to 384": 1,
        "384 to 512": 0,
        "512 to 768": 1,
        "768 to 1024": 0,
        "1024 to 1536": 0,
        "1536 to 2048": 0,
        ">= 2048": 0,
    }
    assert [count for _, count in one.confidence.rows()] == [1, 0, 2, 1, 1, 0, 0, 1]


def test_statistics_are_written_as_json_and_as_tables(tmp_path: Path) -> None:
    path = files.add_rows(files.write_jsonl(tmp_path, num=8), {"prompt": "a | b"})
    scan = MixtureScan([replace(jsonl(path), name="mine | ours")], max_bad_share=0.5)
    list(scan)
    written = json.loads(scan.statistics.to_json())["sources"][0]
    assert (written["rows"], written["comparisons"], written["pairs"], written["ties"]) == (9, 8, 6, 2)
    assert written["dropped"] == {"broken row": 1}
    assert written["side"]["counts"] == [16, 0, 0, 0, 0, 0, 0, 0]
    page = scan.statistics.to_markdown()
    assert "| mine \\| ours | jsonl | 1 | 9 | 8 | 6 | 2 | 16 | 4 |" in page
    assert "| broken row | 1 |" in page
    assert "Pairs that came before: 0 with the same label, 0 with another." in page
    assert "| animal | 4 |" in page
    assert "- pairs.jsonl:9: has no 'preferred'" in page


def test_fifty_thousand_rows_are_quick_and_take_little_memory(tmp_path: Path) -> None:
    names, _ = files.save_ranked(tmp_path, 0, 4, seed=0)
    padding = "in the light of the evening, highly detailed, " * 6

    def rows(count: int) -> Path:
        path = tmp_path / f"{count}.json"
        with path.open("w") as file:
            for row in range(count):
                better, worse = names[row % 4], names[(row + 1 + row // 4 % 3) % 4]
                line = {"prompt": f"{padding}{row}", "path1": better, "path2": worse, "confidence": 0.97}
                file.write(("[" if row == 0 else ",") + json.dumps(line))
            file.write("]")
        return path

    began = time.perf_counter()
    num = sum(1 for _ in MixtureScan([DataSource(format="hpdv3", path=str(rows(50_000)))]))
    assert num == 50_000
    assert time.perf_counter() - began < 60  # 4 s on two slow cores
    small = rows(10_000)
    tracemalloc.start()
    assert sum(1 for _ in MixtureScan([DataSource(format="hpdv3", path=str(small))])) == 10_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000 < small.stat().st_size
