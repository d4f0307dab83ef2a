"""Which pairs a training takes of those that its set holds."""

from __future__ import annotations

import pytest
import torch

from rewards.data.pairs import PairTable
from rewards.training.run import share_of

# Samples 2 i and 2 i + 1 are of prompt i // 2: every prompt has two comparisons.
PROMPT = torch.arange(400) // 4
PAIRS = PairTable.of(winner=list(range(0, 400, 2)), loser=list(range(1, 400, 2)))


def prompts(pairs: PairTable) -> set[int]:
    return set(PROMPT[pairs.winner].tolist())


@pytest.mark.parametrize("share", [0.25, 0.5, 0.003])
def test_a_share_has_whole_prompts(share: float) -> None:
    taken = share_of(PAIRS, PROMPT, share)
    assert len(prompts(taken)) == max(1, round(share * 100))
    assert len(taken) == 2 * len(prompts(taken))


def test_a_smaller_share_is_part_of_a_larger_one() -> None:
    few, more, every = (prompts(share_of(PAIRS, PROMPT, share)) for share in (0.25, 0.5, 1.0))
    assert few < more < every
    assert few != set(range(25))


def test_a_share_is_the_same_each_time() -> None:
    assert torch.equal(share_of(PAIRS, PROMPT, 0.5).winner, share_of(PAIRS, PROMPT, 0.5).winner)
