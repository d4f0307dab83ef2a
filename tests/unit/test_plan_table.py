"""The README's table of what SD3.5 needs is the one that the plan computes."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.benchmarks import plan_table

README = (plan_table.ROOT / "README.md").read_text(encoding="utf-8").splitlines()


def test_every_profile_has_a_line() -> None:
    folders = {path.name for path in Path(plan_table.ROOT / "configs").glob("sd35-*")}
    assert folders == set(plan_table.PROFILES)
    assert [line for line in plan_table.HEADER.splitlines() if line not in README] == []


@pytest.mark.parametrize(
    "profile",
    [name if name.endswith("1gpu") else pytest.param(name, marks=pytest.mark.slow) for name in plan_table.PROFILES],
)
def test_the_line_of_a_profile_is_what_the_plan_says(profile: str) -> None:
    assert plan_table.row(profile) in README
