"""A whole evaluation: scores all images of all benchmarks with all rewards, measures, and writes the tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tqdm import tqdm

from flowrl.base.config_file import dump_config
from flowrl.base.environment import environment, read_environments, write_environments
from flowrl.base.errors import UserError
from flowrl.models.latent_inputs import LatentInputs
from rewards.data.comparison import Comparison, Row, fault_of
from rewards.data.source import DataSource, open_source
from rewards.evaluation.config import BenchmarkEntry, EvaluationConfig
from rewards.evaluation.identity import encoders_identity, file_stamp, source_identity
from rewards.evaluation.labelled_reward import LabelledReward, MakeReward
from rewards.evaluation.measure import Measurement
from rewards.evaluation.protocols import find_protocol
from rewards.evaluation.result import BenchmarkResult, Coverage, EvaluationResult, RewardDescription
from rewards.evaluation.score_comparisons import ScoredComparisons, ScoringPass
from rewards.evaluation.score_prepared import open_prepared, score_prepared
from rewards.evaluation.table import markdown

RESULT, PAGE = "result.json", "result.md"


def run(
    config: EvaluationConfig, *, make: MakeReward, inputs: LatentInputs | None, remarks: Sequence[str] = ()
) -> EvaluationResult:
    """Evaluate, and write config.yaml, env.json, result.json and result.md in `config.out`.

    `make` loads a reward by name and options; `inputs` are the encoders for latent rewards, and `remarks` what the page
    must say of them. Scores that an earlier run left in `config.out` are not made again, but for those of a reward
    behind a server. Raises UserError when data or a reward cannot be used.
    """
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"out: {out} must be a folder, but a file of that name exists")
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    result = Evaluation(config, make=make, inputs=inputs).run()
    write_environments(out / "env.json", [*read_environments(out / "env.json"), environment()])
    (out / RESULT).write_text(result.to_json(), encoding="utf-8")
    notes = "".join(f"\n- {remark}" for remark in remarks)
    page = markdown(result) + (f"\n## What rewards were given\n{notes}\n" if notes else "")
    (out / PAGE).write_text(page, encoding="utf-8")
    return result


class Evaluation:
    """One run of a configuration."""

    def __init__(self, config: EvaluationConfig, *, make: MakeReward, inputs: LatentInputs | None) -> None:
        self._config = config
        self._inputs = inputs
        self._rewards = [
            LabelledReward(label=entry.title, name=entry.name, options=entry.options, make=make)
            for entry in config.rewards
        ]

    def run(self) -> EvaluationResult:
        """All benchmarks, in the order of the configuration."""
        config = self._config
        for benchmark in config.benchmarks:
            _check_suits(benchmark)
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
        self, benchmark: BenchmarkEntry, rewards: Sequence[LabelledReward]
    ) -> tuple[ScoredComparisons, ScoredComparisons | None]:
        limit = benchmark.max_comparisons
        if benchmark.prepared:
            return self._score_prepared(benchmark, rewards), None
        scored = self._score(benchmark.name, benchmark.sources, limit, rewards)
        if not benchmark.validation:
            return scored, None
        return scored, self._score(f"{benchmark.name}, validation", benchmark.validation, 0, rewards)

    def _score(
        self, name: str, sources: Sequence[DataSource], limit: int, rewards: Sequence[LabelledReward]
    ) -> ScoredComparisons:
        with ExitStack() as stack:
            context = self._context(sources)
            folder = Path(self._config.out) / "scores"
            caches = [stack.enter_context(one.cache(folder, sources[0].title, context)) for one in rewards]
            scoring = ScoringPass(
                rewards,
                caches,
                inputs=self._inputs,
                seed=self._config.seed,
                max_bad=self._config.max_bad,
                images_per_chunk=self._config.images_per_chunk,
            )
            total = sum(1 for _ in rows_of(sources, limit))
            bar = stack.enter_context(tqdm(desc=name, total=total, unit="row"))
            scored = scoring.run(rows_of(sources, limit), bar.update)
        check_scored(name, scored, [one.label for one in rewards])
        return scored

    def _score_prepared(self, benchmark: BenchmarkEntry, rewards: Sequence[LabelledReward]) -> ScoredComparisons:
        store, table = open_prepared(benchmark.prepared, benchmark.pair_sources)
        table = table.first_comparisons(benchmark.max_comparisons)
        context = {"prepared": file_stamp(store.folder), "seed": self._config.seed}
        folder = Path(self._config.out) / "scores"
        with ExitStack() as stack:
            caches = [stack.enter_context(one.cache(folder, store.folder.name, context)) for one in rewards]
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


def _check_suits(benchmark: BenchmarkEntry) -> None:
    """Raise UserError, before anything is scored, when a protocol for pairs meets a ranking of more images."""
    strict = [one for one in map(find_protocol, benchmark.protocols) if one.pairs_only]
    if not strict:
        return
    if benchmark.prepared:
        _, table = open_prepared(benchmark.prepared, benchmark.pair_sources)
        ranking = "" if strict[0].suits(table) else "a comparison"
    else:
        rows = rows_of(benchmark.sources, benchmark.max_comparisons)
        longer = (row.origin for row in rows if isinstance(row, Comparison) and len(row.images) > 2)
        ranking = next(longer, "")
    if ranking:
        raise UserError(
            f"benchmarks, {benchmark.name!r}: protocol {strict[0].name} counts pairs, but {ranking} ranks more than "
            "two images; use rankings_pooled or rankings_per_prompt"
        )


def rows_of(sources: Sequence[DataSource], limit: int) -> Iterator[Row]:
    """The rows of all sources without what their filters leave out, up to the `limit`-th comparison of each (0: all).

    Rows that cannot be used, or say nothing about a preference, do not count.
    """
    for source in sources:
        taken = 0
        for row in open_source(source):
            if isinstance(row, Comparison):
                if not _is_kept(row, source):
                    continue
                taken += not fault_of(row)
            yield row
            if limit and taken == limit:
                break


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
    return Coverage(
        num_comparisons=scored.num_comparisons,
        num_pairs=len(scored.pairs),
        num_ties=int(scored.pairs.table.tie.sum()),
        num_comparable=len(scored.comparable),
        unscored=dict(zip(labels, scored.unscored, strict=True)),
        num_bad_rows=scored.bad_rows.count,
        bad_rows=tuple(scored.bad_rows.named),
        num_bad_images=scored.bad_images.count,
        bad_images=tuple(scored.bad_images.named),
        skipped_rows=scored.skipped_rows,
    )


def _is_kept(comparison: Comparison, source: DataSource) -> bool:
    in_category = not source.categories or comparison.category in source.categories
    return in_category and comparison.confidence >= source.min_confidence
