"""Whole runs in one process: what they leave, what they learn, how they resume and stop."""

from __future__ import annotations

from tests.integration.runs import TinyRuns


def test_a_run_leaves_what_others_rely_on(runs: TinyRuns) -> None:
    run = runs.run()
    assert [row["step"] for row in run.metrics] == [0, 1, 2, 3, 4, 5]
    print(run.metrics[0], run.metrics[-1])
    assert False
