"""The benchmark of real hardware, run on the CPU with tiny shapes: its record is whole and its page says the same."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from experiments.benchmarks.gpu import (
    bench,
    case_names,
    deviation,
    networks,
    part_process,
    planned,
    zero3,
)
from experiments.benchmarks.gpu.part_process import PartProcess
from experiments.benchmarks.gpu.parts import PARTS, PLAN, Part
from experiments.benchmarks.gpu.record import Case, PartRecord, Record, from_json, to_json
from experiments.benchmarks.gpu.setting import Setting
from experiments.benchmarks.gpu.sizes import REAL, SMALL
from experiments.benchmarks.gpu.table import page
from experiments.benchmarks.gpu.timing import measure
from flowrl.base.errors import UserError

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What one run of the command left."""

    record: Record
    table: str

    def case(self, part: str, name: str) -> Case:
        [found] = [case for case in self.record.part(part).cases if case.name == name]
        return found

    def row(self, name: str) -> list[str]:
        """The cells of the first row of the page's tables that begins with a name."""
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in self.table.splitlines()]
        return next(row for row in rows if row[0] == name)


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """The command with --small, run once."""
    folder = tmp_path_factory.mktemp("benchmark")
    command = [sys.executable, "-m", "experiments.benchmarks.gpu", "--small", "--out", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    json_file, table_file = map(Path, done.stdout.splitlines()[-2:])
    assert json_file.parent == table_file.parent == folder
    return Trial(record=from_json(json_file.read_text()), table=table_file.read_text())


def setting() -> Setting:
    return Setting(small=True, until=time.monotonic() + 60)


@pytest.mark.slow
def test_every_part_is_there_and_all_its_cases_were_measured(trial: Trial) -> None:
    assert [part.name for part in trial.record.parts] == [part.name for part in (*PARTS, PLAN)]
    cases = [case for part in trial.record.parts if part.name != PLAN.name for case in part.cases]
    assert [case for case in cases if case.outcome != "measured"] == []
    assert all(case.seconds and min(case.seconds) > 0 for case in cases)
    assert [case.outcome for case in trial.record.part(PLAN.name).cases] == ["computed"] * 7


@pytest.mark.slow
def test_the_sizes_that_were_asked_for_are_measured(trial: Trial) -> None:
    assert [case.name for case in trial.record.part("rollout").cases] == list(
        map(case_names.rollout, SMALL.samples_per_forward)
    )
    updates = [case.name for case in trial.record.part("update").cases]
    assert updates[1:-1] == [one.name for one in SMALL.micro_batches]
    assert updates[-1] == f"group of 4, 2 steps: {SMALL.group_update.name}"
    paths = (case_names.LATENT, case_names.PIXEL, case_names.DECODED)
    paths += (case_names.HPSV3, case_names.HPSV3_DECODED)
    expected = [case_names.decode(count) for count in (1, 2)]
    expected += [case_names.reward(path, count) for path in paths for count in (1, 2)]
    assert [case.name for case in trial.record.part("rewards").cases] == expected


@pytest.mark.slow
def test_the_flops_that_are_counted_are_those_of_the_plan(trial: Trial) -> None:
    computed = {case.name: case for case in trial.record.part(PLAN.name).cases}
    measured = {f"{part.name}: {case.name}": case for part in trial.record.parts for case in part.cases}
    for name, plan in computed.items():
        assert measured[name].flops == plan.flops > 0
        assert plan.planned is not None
        assert plan.planned > 0


@pytest.mark.slow
def test_an_update_is_its_micro_batches(trial: Trial) -> None:
    one = trial.case("update", SMALL.group_update.name)
    group = trial.record.part("update").cases[-1]
    assert group.flops == one.flops * 2 * 2  # micro-batches, trained steps
    assert group.images == SMALL.group_size


@pytest.mark.slow
def test_decoding_and_encoding_add_to_a_score(trial: Trial) -> None:
    latent, encoded, decoded = (
        trial.case("rewards", case_names.reward(path, 2)).flops
        for path in (case_names.LATENT, case_names.PIXEL, case_names.DECODED)
    )
    assert decoded - encoded == trial.case("rewards", case_names.decode(2)).flops
    assert encoded > latent


@pytest.mark.slow
def test_on_the_cpu_the_replay_of_equal_batches_is_exact_and_sharding_changes_no_score(trial: Trial) -> None:
    for how in ("eager", "compiled"):
        equal = trial.case("deviation", f"{how}: sampled by 2, replayed by 2").deviations
        assert [(one.what, one.value) for one in equal] == [
            (what, 0.0) for what in (deviation.LARGEST_RATIO, deviation.LARGEST_LOG_PROB, deviation.CLIPPED)
        ]
    sharded = trial.case("zero3", "ZeRO-3 of one rank, batch 2").deviations
    assert [(one.what, one.value) for one in sharded] == [(zero3.SCORES, 0.0)]


@pytest.mark.slow
def test_the_page_holds_the_figures_of_the_record(trial: Trial) -> None:
    rate = trial.record.part("matmul").cases[0].rate
    for part in trial.record.parts[:-1]:
        for case in part.cases:
            row = trial.row(case.name)
            assert row[1] == f"{case.median:.4g}"
            assert row[3] == (f"{case.images / case.median:.4g}" if case.images else "-")
            assert row[4] == (f"{case.rate / 1e12:.4g}" if case.flops else "-")
            assert row[5] == (f"{case.rate / rate:.1%}" if case.flops else "-")
            assert [f"- {case.name}: {one.what} {one.value:.3g}" in trial.table for one in case.deviations] == [
                True
            ] * len(case.deviations)


@pytest.mark.slow
def test_the_page_says_where_and_of_what(trial: Trial) -> None:
    record = trial.record
    assert record.small
    assert record.environment.command.startswith("python -m experiments.benchmarks.gpu --small")
    assert f"torch {torch.__version__}" in trial.table
    assert "a trial of the benchmark, not a measurement" in trial.table
    assert record.environment.started[:10] in trial.table.splitlines()[0]


@pytest.mark.slow
def test_the_published_figures_stand_beside_ours(trial: Trial) -> None:
    table = trial.table.partition("## Table 2")[2]
    for row in ("DiT-Reward, pixel | 154 | 27.2", "HPSv3, pixel | 89 | 16", "DiT-Reward, latent | 54 | 16.1"):
        assert f"| {row} | published |" in table
    case = trial.case("rewards", case_names.reward(case_names.LATENT, 2))
    assert f"| {case.name} | {1000 * case.median / 2:.4g} | - | measured here |" in table


@pytest.mark.slow
def test_a_measured_peak_stands_beside_the_computed_one(trial: Trial) -> None:
    name = case_names.rollout(4)
    measured = Case(name=name, seconds=(2.0, 1.0, 4.0), images=16, allocated=15 * 10**9, reserved=18 * 10**9)
    computed = Case(name=f"rollout: {name}", outcome="computed", planned=12 * 10**9)
    parts = (
        PartRecord(name="rollout", title="Rollout", cases=(measured,)),
        PartRecord(name="plan", title="Plan", cases=(computed,)),
    )
    made = Trial(record=trial.record, table=page(replace(trial.record, parts=parts)))
    assert made.row(name)[1:] == ["2", "1 to 4", "8", "-", "-", "15", "18", "12", "1.250"]


@pytest.mark.slow
def test_a_record_is_read_back_as_it_was(trial: Trial) -> None:
    assert from_json(to_json(trial.record)) == trial.record


@pytest.mark.slow
def test_a_second_record_of_a_day_replaces_none(trial: Trial, tmp_path: Path) -> None:
    names = [[file.name for file in bench.write(trial.record, tmp_path)] for _ in range(2)]
    stem = f"{trial.record.environment.started[:10]}-cpu-"
    assert names[0][0].startswith(stem)
    assert [name.removesuffix(".json") + ".md" for name, _ in names] == [table for _, table in names]
    assert names[1][0] == names[0][0].replace(".json", "-2.json")


def test_too_little_memory_is_a_finding_and_the_next_case_is_measured() -> None:
    def too_large() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 90.00 GiB. GPU 0 has a total of 80 GiB")

    case = measure("large", too_large, setting())
    assert (case.outcome, case.reason, case.seconds) == ("out of memory", "CUDA out of memory", ())
    assert measure("small", lambda: None, setting()).outcome == "measured"


def test_a_case_that_comes_too_late_is_skipped() -> None:
    case = measure("late", lambda: pytest.fail("it ran"), Setting(small=True, until=time.monotonic()))
    assert (case.outcome, case.reason) == ("skipped", "the time of its part was over")


def test_a_part_that_fails_says_why(tmp_path: Path) -> None:
    part = Part(name="none", title="None", module="experiments.benchmarks.gpu.parts", seconds=1)
    [case] = PartProcess(part, tmp_path, small=True, until=time.monotonic() + 100).record().cases
    assert case.outcome == "failed"
    assert "has no attribute 'run'" in case.reason


def test_without_time_every_part_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_process, "_GRACE_S", 0.0)
    record = bench.run(small=True, seconds=0, names=("matmul", "update"), commit="")
    assert [(part.name, [case.outcome for case in part.cases]) for part in record.parts] == [
        ("matmul", ["skipped"]),
        ("update", ["skipped"]),
        ("plan", ["skipped"]),
    ]
    assert "- all of it: skipped, 0 s were left of the time" in page(record)
    assert record.parts[-1].cases[0].reason == "stopped after 0 s"


def test_real_shapes_without_a_gpu_are_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"no NVIDIA GPU here: .*; --small tries everything on the CPU"):
        bench.run(small=False, seconds=60, names=(), commit="")


def test_the_real_shapes_are_those_of_the_published_models() -> None:
    def count(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    assert count(networks.empty_transformer(REAL)) == 8_056_627_520
    head = (3584 + 1) * 1024 + (1024 + 1) * 16 + (16 + 1) * 2
    # The published Qwen2-VL-7B has 8,291,375,616, with embeddings and a language head of 152,064 tokens.
    assert count(networks.empty_hpsv3(REAL)) - head == 8_291_375_616 - (2 * 152_064 - 151_658) * 3584
    assert REAL.latent_shape == (16, 64, 64)
    assert REAL.language.patches.num_tokens(512, 512) == 256
    planned = {micro_batch.samples for micro_batch in REAL.micro_batches}
    assert planned >= set(REAL.samples_per_forward)
    assert REAL.group_update in REAL.micro_batches


def test_the_plan_knows_the_peak_of_both_rewards() -> None:
    cases = list(planned.published_rewards(Setting(small=False, until=0.0)))
    assert [case.name for case in cases] == [
        f"rewards: {case_names.reward(path, count)}"
        for path in (case_names.LATENT, case_names.HPSV3)
        for count in REAL.reward_batches
    ]
    sizes = [case.planned / 1e9 for case in cases if case.planned is not None]
    assert sizes == pytest.approx([16.4, 17.7, 15.6, 17.3], abs=0.2)  # the weights, and activations of 1 and 16 images


def test_nothing_that_the_benchmark_needs_imports_ray_or_deepspeed() -> None:
    modules = ", ".join(part.module for part in (*PARTS, PLAN))
    code = f"import sys, {modules}; print(sorted({{'ray', 'deepspeed'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
