"""What a training says of its validation pairs: accuracy by source, and what is not measured at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rewards.data.pairs import PairTable
from rewards.data.store import PreferenceStore
from rewards.training.run import idle_sources
from rewards.training.scoring import agreement
from tests import tiny_store


def three_sources() -> PairTable:
    """Four pairs: in the first source one right and one wrong, in the second a tie, in the third one right."""
    pairs = PairTable.of(winner=[0, 1, 2, 4], loser=[1, 2, 3, 0])
    return replace(
        pairs,
        tie=torch.tensor([False, False, True, False]),
        source=torch.tensor([0, 0, 1, 2]),
        sources=("a", "b", "c"),
    )


def test_accuracy_is_by_source_and_a_source_of_ties_is_named() -> None:
    scores = torch.tensor([1.0, 0.0, 3.0, 7.0, 2.0, torch.nan])  # the last stands in no pair
    found = agreement(three_sources(), scores)
    assert found.overall == pytest.approx(2 / 3)
    assert found.by_source == {"a": 0.5, "c": 1.0}
    assert found.unmeasured == ("b",)
    assert found.pairs == 3
    assert found.mean_score == pytest.approx(13 / 5)


def test_a_source_none_of_whose_pairs_are_used_is_named(tmp_path: Path) -> None:
    tiny_store.write_set(tmp_path / "set", num_comparisons=3, latent_space="x", seed=0)
    store = PreferenceStore(tmp_path / "set")
    store.pairs = replace(three_sources(), sources=("a", "b", "c", "d"))
    assert idle_sources(store, store.pairs.select(~store.pairs.tie), "the accuracy") == [
        f"{tmp_path / 'set'}: b adds nothing to the accuracy: 1 of its 1 pairs are ties",
        f"{tmp_path / 'set'}: d adds nothing to the accuracy: 0 of its 0 pairs are ties",
    ]
    assert len(idle_sources(store, store.pairs, "the training")) == 1
