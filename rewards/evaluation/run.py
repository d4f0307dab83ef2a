"""A whole evaluation: scores all images of all benchmarks with all rewards, measures, and writes the tables."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

from tqdm import tqdm

from flowrl.base.atomic_file import write_atomically
from flowrl.base.config_file import dump_config
from flowrl.base.environment import environment, read_environments, write_environments
from flowrl.base.errors import UserError
from flowrl.base.folder_lock import make_writable, take_lock
from flowrl.models.latent_inputs import LatentInputs
from rewards.data.comparison import Row
from rewards.data.source import DataSource
from rewards.evaluation.accuracy import find_protocol
from rewards.evaluation.benchmark_rows import check_first_rows, rows_of, suited
from rewards.evaluation.cached_reward import CachedReward, MakeReward
from rewards.evaluation.config import BenchmarkEntry, EvaluationConfig
from rewards.evaluation.identity import encoders_identity, file_stamp, source_identity
from rewards.evaluation.measure import Measurement
from rewards.evaluation.result import BenchmarkResult, Coverage, EvaluationResult, RewardDescription
from rewards.evaluation.score_comparisons import ScoredComparisons, ScoringPass
from rewards.evaluation.score_prepared import open_prepared, score_prepared
from rewards.evaluation.table import markdown

RESULT, PAGE = "result.json", "result.md"


def run(
    config: EvaluationConfig,
    *,
    make: MakeReward,
    target: Callable[[str], str],
    inputs: LatentInputs | None,
    remarks: Sequence[str] = (),
) -> EvaluationResult:
    """Evaluate, and write config.yaml, env.json, result.json and result.md in `config.out`, all at the end.

    `make` loads a reward by name and options, and `target` says which class a name stands for, "module:Class"; `inputs`
    are the encoders for latent rewards, and `remarks` what the page must say of them. Scores that an earlier run left
    in `config.out` are not made again, but for those of a reward behind a server; that there are such is said on
    stderr. Raises UserError when data or a reward cannot be used, ConfigError when another process writes to
    `config.out`.
    """
    out = Path(config.out)
    make_writable(out, "out")
    with take_lock(out, "out") or nullcontext():
        evaluation = Evaluation(config, make=make, target=target, inputs=inputs)
        result = evaluation.run()
        if reused := evaluation.reused:
            tqdm.write(f"reward eval: {reused}", file=sys.stderr)
        notes = "".join(f"\n- {remark}" for remark in remarks)
        page = markdown(result) + (f"\n## What rewards were given\n{notes}\n" if notes else "")
        write_environments(out / "env.json", [*read_environments(out / "env.json"), environment()])
        write_atomically(out / "config.yaml", dump_config(config).encode())
        write_atomically(out / RESULT, result.to_json().encode())
        write_atomically(out / PAGE, page.encode())
    return result


class Evaluation:
    """One run of a configuration."""

    def __init__(
        self,
        config: EvaluationConfig,
        *,
        make: MakeReward,
        target: Callable[[str], str],
        inputs: LatentInputs | None,
    ) -> None:
        self._config = config
        self._inputs = inputs
        self._folder = Path(config.out) / "scores"
        self._rewards = [
            CachedReward(
                label=entry.title, name=entry.name, options=entry.options, target=target(entry.name), make=make
            )
            for entry in config.rewards
        ]

    def run(self) -> EvaluationResult:
        """All benchmarks, in the order of the configuration."""
        config = self._config
        for benchmark in config.benchmarks:
            check_first_rows(benchmark)
        if not config.together:
            for reward in self._rewards:
                for benchmark in config.benchmarks:
                    self._score_all(benchmark, [reward])
                reward.release()
        return EvaluationResult(
            rewards=tuple(
                RewardDescription(label=one.label, name=one.name, options=one.options) for one in self._rewards
            ),
            benchmarks=tuple(self._benchmark(benchmark) for benchmark in config.benchmarks),
            draws=config.draws,
            seed=config.seed,
        )

    @property
    def reused(self) -> str:
        """How many of its scores so far an earlier run has made, and where they are; empty when none."""
        found = sum(one.num_found for one in self._rewards)
        needed = found + sum(one.num_made for one in self._rewards)
        return f"{found} of {needed} scores found from an earlier run in {self._folder}" if found else ""

    def _benchmark(self, benchmark: BenchmarkEntry) -> BenchmarkResult:
        scored, validation = self._score_all(benchmark, self._rewards)
        measurement = Measurement(
            labels=tuple(entry.title for entry in self._config.rewards),
            scales=tuple(entry.probability_scale for entry in self._config.rewards),
            draws=self._config.draws,
            seed=self._config.seed,
            name=benchmark.name,
        )
        protocols = [find_protocol(name) for name in benchmark.protocols]
        return BenchmarkResult(
            name=benchmark.name,
            test_set=benchmark.test_set,
            coverage=coverage(scored, measurement.labels),
            protocols=tuple(measurement.measure(one, scored, validation) for one in protocols),
        )

    def _score_all(
        self, benchmark: BenchmarkEntry, rewards: Sequence[CachedReward]
    ) -> tuple[ScoredComparisons, ScoredComparisons | None]:
        limit = benchmark.max_comparisons
        if benchmark.prepared:
            return self._score_prepared(benchmark, rewards), None
        rows = suited(rows_of(benchmark.sources, limit), benchmark)
        scored = self._score(benchmark.name, benchmark.sources, rows, rewards)
        if not benchmark.validation:
            return scored, None
        rows = rows_of(benchmark.validation, 0)
        return scored, self._score(f"{benchmark.name}, validation", benchmark.validation, rows, rewards)

    def _score(
        self, name: str, sources: Sequence[DataSource], rows: Iterator[Row], rewards: Sequence[CachedReward]
    ) -> ScoredComparisons:
        with ExitStack() as stack:
            context = self._context(sources)
            caches = [stack.enter_context(one.cache(self._folder, sources[0].title, context)) for one in rewards]
            scoring = ScoringPass(
                rewards,
                caches,
                inputs=self._inputs,
                seed=self._config.seed,
                max_bad=self._config.max_bad,
                images_per_chunk=self._config.images_per_chunk,
            )
            bar = stack.enter_context(tqdm(desc=name, unit="row"))
            scored = scoring.run(rows, bar.update)
        check_scored(name, scored, [one.label for one in rewards])
        return scored

    def _score_prepared(self, benchmark: BenchmarkEntry, rewards: Sequence[CachedReward]) -> ScoredComparisons:
        store, table = open_prepared(benchmark.prepared, benchmark.pair_sources)
        table = table.first_comparisons(benchmark.max_comparisons)
        context = {"prepared": file_stamp(store.folder), "seed": self._config.seed}
        with ExitStack() as stack:
            caches = [stack.enter_context(one.cache(self._folder, store.folder.name, context)) for one in rewards]
            scored = score_prepared(
                benchmark.name,
                store,
                table,
                rewards,
                caches,
                seed=self._config.seed,
                images_per_chunk=self._config.images_per_chunk,
            )
        check_scored(benchmark.name, scored, [one.label for one in rewards])
        return scored

    def _context(self, sources: Sequence[DataSource]) -> dict[str, Any]:
        """What scores depend on beside the reward."""
        context: dict[str, Any] = {"sources": [source_identity(one) for one in sources], "seed": self._config.seed}
        if self._inputs is not None:
            context |= {"encoders": encoders_identity(self._inputs.setting)}
        return context


def check_scored(name: str, scored: ScoredComparisons, labels: Sequence[str]) -> None:
    """Raise UserError when there is nothing to count, saying what is to blame."""
    bad = [*scored.bad_rows.named, *scored.bad_images.named]
    because = f"; the first that cannot be used: {bad[0]}" if bad else ""
    if not len(scored.pairs):
        raise UserError(f"{name}: there is no comparison to evaluate on{because}")
    silent = [label for label, row in zip(labels, scored.scores, strict=True) if not row.isfinite().any()]
    if silent:
        raise UserError(f"{name}: {silent[0]} has no finite score of any image{because}")


def coverage(scored: ScoredComparisons, labels: Sequence[str]) -> Coverage:
    """What of a benchmark was used."""
    recurrences = scored.pairs.recurrences
    return Coverage(
        num_comparisons=scored.num_comparisons,
        num_pairs=len(scored.pairs),
        num_ties=int(scored.pairs.table.tie.sum()),
        num_repeated=recurrences.same_label,
        num_contradicted=recurrences.other_label,
        num_comparable=len(scored.comparable),
        unscored=dict(zip(labels, scored.unscored, strict=True)),
        num_bad_rows=scored.bad_rows.count,
        bad_rows=tuple(scored.bad_rows.named),
        num_bad_images=scored.bad_images.count,
        bad_images=tuple(scored.bad_images.named),
        skipped_rows=scored.skipped_rows,
    )
