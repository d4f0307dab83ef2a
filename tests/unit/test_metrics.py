"""The glossary, the reduction of metrics and the log that keeps them."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from run_fixture import FakeRun, evaluation_values, training_values
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flowrl.metrics import GLOSSARY, describe, entry, read_metrics, reduce, run_log
from flowrl.types import Metric


def lines(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def scalars(run_dir: Path, key: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(run_dir / "tb"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(key)]


def test_every_key_of_a_run_is_explained() -> None:
    noise = random.Random(0)
    run = FakeRun()
    keys = training_values(run, 1, noise).keys() | evaluation_values(run, 1, noise).keys()
    for key in keys:
        assert describe(key).endswith("]"), key


def test_describe_says_meaning_unit_and_direction() -> None:
    text = describe("reward/hpsv3/mean")
    assert text.startswith("Mean score of the step's training images")
    assert text.endswith("[score; higher is better]")
    assert describe("policy/version").endswith("[count]")


def test_an_exact_key_comes_before_a_pattern() -> None:
    assert "weighted sum" in describe("reward/total/mean")
    assert "RMS distance" in describe("eval/diversity/mean")


@pytest.mark.parametrize("key", ["policy/unheard_of", "reward/a/b/mean", "reward/<name>", "time/<phase>_s", "", "step"])
def test_an_unexplained_key_is_refused(key: str) -> None:
    with pytest.raises(KeyError, match="glossary"):
        describe(key)


def test_explanations_are_whole_sentences() -> None:
    for key, found in GLOSSARY.items():
        assert len(found.meaning) > 25, key
        assert found.meaning[0].isupper(), key
        assert found.unit, key
        assert found.good in ("up", "down", ""), key


def test_reduce_combines_as_each_metric_says() -> None:
    metrics = [
        Metric(key="policy/kl", value=0.1),
        Metric(key="policy/kl", value=0.4),
        Metric(key="policy/ratio_absdev_max", value=3.0, reduce="max"),
        Metric(key="policy/ratio_absdev_max", value=1.0, reduce="max"),
        Metric(key="count/images", value=16.0, reduce="sum"),
        Metric(key="count/images", value=16.0, reduce="sum"),
        Metric(key="policy/version", value=9.0, reduce="last"),
        Metric(key="policy/version", value=7.0, reduce="last"),
    ]
    assert reduce(metrics) == {
        "policy/kl": 0.25,
        "policy/ratio_absdev_max": 3.0,
        "count/images": 32.0,
        "policy/version": 7.0,
    }
    assert reduce([]) == {}


def test_reduce_does_not_depend_on_order_of_a_mean() -> None:
    values = [1e16, 1.0, -1e16, 1.0]
    forward = reduce([Metric(key="policy/kl", value=value) for value in values])
    backward = reduce([Metric(key="policy/kl", value=value) for value in reversed(values)])
    assert forward == backward == {"policy/kl": 0.5}


def test_reduce_refuses_mixed_reductions() -> None:
    with pytest.raises(ValueError, match=r"policy/kl.*'mean' and 'max'"):
        reduce([Metric(key="policy/kl", value=1.0), Metric(key="policy/kl", value=1.0, reduce="max")])


def test_log_writes_the_same_numbers_to_both_places(tmp_path: Path) -> None:
    with run_log(tmp_path) as log:
        log.log(0, {"eval/oracle/mean": 0.58})
        log.log(1, {"policy/kl": 0.25, "reward/total/mean": -1.5})
        assert lines(tmp_path)[1] == {
            "step": 1,
            "policy/kl": 0.25,
            "reward/total/mean": -1.5,
        }  # at once, not at the end
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 0, "eval/oracle/mean": 0.58},
        {"step": 1, "policy/kl": 0.25, "reward/total/mean": -1.5},
    ]
    assert scalars(tmp_path, "policy/kl") == [(1, 0.25)]
    assert scalars(tmp_path, "reward/total/mean") == [(1, -1.5)]


def test_log_refuses_what_nobody_explained(tmp_path: Path) -> None:
    with run_log(tmp_path) as log, pytest.raises(KeyError, match="policy/surprise"):
        log.log(0, {"policy/surprise": 1.0})
    assert lines(tmp_path) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_log_refuses_what_is_not_finite(tmp_path: Path, value: float) -> None:
    with run_log(tmp_path) as log, pytest.raises(ValueError, match=r"policy/grad_norm of step 3 must be finite"):
        log.log(3, {"policy/kl": 0.1, "policy/grad_norm": value})
    assert lines(tmp_path) == []


def test_an_undefined_mean_is_null_and_absent_when_read(tmp_path: Path) -> None:
    with run_log(tmp_path) as log:
        log.log(1, {"reward/hpsv3/mean": math.nan, "reward/hpsv3/invalid": 1.0})
        with pytest.raises(ValueError, match="finite"):
            log.log(2, {"reward/hpsv3/mean": math.inf})
    assert lines(tmp_path) == [{"step": 1, "reward/hpsv3/mean": None, "reward/hpsv3/invalid": 1.0}]
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "reward/hpsv3/invalid": 1.0}]
    assert entry("reward/hpsv3/mean").nullable
    assert not entry("policy/loss").nullable


def test_steps_are_logged_once_and_in_order(tmp_path: Path) -> None:
    with run_log(tmp_path) as log:
        log.log(2, {"policy/kl": 0.1})
        for step in (2, 1):
            with pytest.raises(ValueError, match=f"got step {step} after step 2"):
                log.log(step, {"policy/kl": 0.1})


def test_resume_forgets_later_steps_and_a_torn_line(tmp_path: Path) -> None:
    with run_log(tmp_path) as log:
        for step in range(6):
            log.log(step, {"policy/kl": float(step), "reward/a/mean": math.nan})
    kept = (tmp_path / "metrics.jsonl").read_text().splitlines()[:4]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "poli')
    with run_log(tmp_path, resumed_step=3) as log:
        assert (tmp_path / "metrics.jsonl").read_text().splitlines() == kept  # to the byte, nulls included
        with pytest.raises(ValueError, match="got step 3 after step 3"):
            log.log(3, {"policy/kl": 0.0})
        log.log(4, {"policy/kl": 40.0})
    assert [(row["step"], row["policy/kl"]) for row in lines(tmp_path)] == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 40)]
    assert scalars(tmp_path, "policy/kl") == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]


def test_read_metrics_drops_a_torn_last_line_alone(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    path.write_text('{"step": 0, "policy/kl": 1}\n\n{"step": 1, "pol')
    assert read_metrics(path) == [{"step": 0, "policy/kl": 1.0}]
    path.write_bytes(b'{"step": 0}\n{"step": 1, "x": "\xff')
    assert read_metrics(path) == [{"step": 0}]
    path.write_text('{"step": 0}\n{"broken\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl: line 2 must be a JSON object with a step"):
        read_metrics(path)


def test_images_text_and_the_layout_reach_tensorboard(tmp_path: Path) -> None:
    grid = torch.zeros(3, 64, 128, dtype=torch.uint8)
    grid[0] = 255
    with run_log(tmp_path) as log:
        log.log(0, {"policy/kl": 0.0})
        log.images("samples", 0, grid)
        log.text("config", 0, "run.seed: 0")
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    image = events.Images("samples")[0]
    assert (image.width, image.height, image.step) == (128, 64, 0)
    assert events.Tensors("config/text_summary")[0].tensor_proto.string_val[0] == b"run.seed: 0"
    layout = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    for words in (b"held-out scores", b"oracle", b"KL to the start"):
        assert words in layout


@pytest.mark.parametrize("module", ["metrics", "run_dir", "console", "report.run_report", "matched.page", "samples"])
def test_import_is_quick(module: str) -> None:
    program = f"import sys, flowrl.{module}; assert not {{'torch', 'tensorboard', 'ray'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
