"""The losses on preference pairs against numbers by hand, closed forms, and integrals computed apart."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rewards.training.losses import (
    LossKind,
    TieKind,
    bradley_terry_loss,
    pair_losses,
    rao_kupper_loss,
    soft_tie_loss,
    uncertain_tie_loss,
    uncertainty_loss,
)

SCORES = st.floats(-20, 20)


def draws(count: int, pairs: int, seed: int = 0) -> torch.Tensor:
    """Standard normal draws [count, pairs]."""
    return torch.randn(count, pairs, generator=torch.Generator().manual_seed(seed))


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def outputs(mu: list[float], log_sigma: list[float]) -> torch.Tensor:
    return torch.tensor([mu, log_sigma]).T


def test_bradley_terry_by_hand() -> None:
    loss = bradley_terry_loss(doubles(1, 0, -2, 300), doubles(1, math.log(3), 0, 0))
    # equal scores; e^0 / (e^0 + 3); sigmoid(-2); certainty
    torch.testing.assert_close(loss, doubles(math.log(2), math.log(4), math.log(1 + math.e**2), 0))
    assert bradley_terry_loss(doubles(-500), doubles(500)).item() == 1000  # finite where exp would overflow


def test_a_soft_tie_costs_nothing_at_equal_scores_and_the_same_either_way() -> None:
    first, second = doubles(2, 1, 5), doubles(2, 4, -1)
    loss = soft_tie_loss(first, second)
    by_hand = [0.5 * (math.log(1 + math.exp(-d)) + math.log(1 + math.exp(d))) - math.log(2) for d in (0, -3, 6)]
    torch.testing.assert_close(loss, doubles(*by_hand))
    torch.testing.assert_close(soft_tie_loss(second, first), loss)
    assert loss[0].abs() < 1e-12 < loss[1] < loss[2]


@given(SCORES, SCORES, st.floats(1.001, 50))
def test_win_loss_and_tie_are_all_that_can_happen(first: float, second: float, threshold: float) -> None:
    one, other = doubles(first), doubles(second)
    no, yes = torch.tensor([False]), torch.tensor([True])
    chances = [
        torch.exp(-rao_kupper_loss(one, other, no, threshold=threshold)),
        torch.exp(-rao_kupper_loss(other, one, no, threshold=threshold)),
        torch.exp(-rao_kupper_loss(one, other, yes, threshold=threshold)),
    ]
    assert sum(chances).item() == pytest.approx(1, abs=1e-9)
    torch.testing.assert_close(rao_kupper_loss(one, other, yes, threshold=threshold), -torch.log(chances[2]))


def test_rao_kupper_by_hand() -> None:
    # e^w = 6, e^l = 2, k = 5: 6 / (6 + 10), 2 / (2 + 30), and (25 - 1) times both.
    winner, loser = doubles(math.log(6)).expand(2), doubles(math.log(2)).expand(2)
    found = rao_kupper_loss(winner, loser, torch.tensor([False, True]))
    torch.testing.assert_close(found, -torch.log(doubles(6 / 16, 24 * 6 / 16 * 2 / 32)))


def test_rao_kupper_becomes_bradley_terry_where_ties_vanish() -> None:
    winner, loser = doubles(1, -2, 0.5), doubles(0, 1, 0.5)
    decided = torch.zeros(3, dtype=torch.bool)
    near = rao_kupper_loss(winner, loser, decided, threshold=1 + 1e-9)
    torch.testing.assert_close(near, bradley_terry_loss(winner, loser), rtol=0, atol=1e-8)
    assert (rao_kupper_loss(winner, loser, ~decided, threshold=1 + 1e-9) > 15).all()
    with pytest.raises(ValueError, match=r"threshold of the tie model must be above 1, got 1"):
        rao_kupper_loss(winner, loser, decided, threshold=1.0)


def test_without_spread_the_uncertainty_loss_is_bradley_terry() -> None:
    mu_winner, mu_loser = [1.0, -0.5, 3.0], [0.0, 0.5, 3.0]
    loss = uncertainty_loss(outputs(mu_winner, [-20.0] * 3), outputs(mu_loser, [-20.0] * 3), draws(10, 3))
    expected = bradley_terry_loss(torch.tensor(mu_winner), torch.tensor(mu_loser))
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-6)
    ties = uncertain_tie_loss(outputs(mu_winner, [-20.0] * 3), outputs(mu_loser, [-20.0] * 3), draws(10, 3))
    torch.testing.assert_close(ties, soft_tie_loss(torch.tensor(mu_winner), torch.tensor(mu_loser)), rtol=0, atol=1e-6)


def test_the_same_draws_give_the_same_loss() -> None:
    winner, loser = outputs([1.0, 0.0], [0.0, 1.0]), outputs([0.0, 1.0], [0.5, -1.0])
    once = uncertainty_loss(winner, loser, draws(7, 2, seed=3))
    assert torch.equal(once, uncertainty_loss(winner, loser, draws(7, 2, seed=3)))
    assert not torch.equal(once, uncertainty_loss(winner, loser, draws(7, 2, seed=4)))


def expected_loss(winner: tuple[float, float], loser: tuple[float, float]) -> float:
    """E log(1 + exp(-D)) of a normal D, by Gauss-Hermite quadrature: mu, log sigma of the two."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    spread = math.hypot(math.exp(winner[1]), math.exp(loser[1]))
    return float((weights * np.logaddexp(0, -(winner[0] - loser[0] + spread * nodes))).sum() / weights.sum())


@pytest.mark.parametrize(
    ("winner", "loser"),
    [((1.0, 0.0), (0.0, 0.0)), ((0.3, -1.0), (0.9, 0.7)), ((-2.0, 0.2), (1.0, -3.0))],
)
def test_the_uncertainty_loss_is_an_expectation(winner: tuple[float, float], loser: tuple[float, float]) -> None:
    first, second = torch.tensor([winner]), torch.tensor([loser])
    found = uncertainty_loss(first, second, draws(400_000, 1)).item()
    assert found == pytest.approx(expected_loss(winner, loser), abs=5e-3)
    # A plain Monte Carlo of its own: each score drawn by itself.
    plain = np.random.default_rng(1)
    drawn = [mu + math.exp(log_sigma) * plain.standard_normal(400_000) for mu, log_sigma in (winner, loser)]
    assert found == pytest.approx(np.logaddexp(0, drawn[1] - drawn[0]).mean(), abs=1e-2)


def test_the_gradient_reaches_the_score_and_its_spread() -> None:
    winner = outputs([1.0, 1.0], [0.0, 0.0]).requires_grad_()
    loser = outputs([0.0, 0.0], [0.0, 0.0]).requires_grad_()
    uncertainty_loss(winner, loser, draws(20_000, 2)).sum().backward()
    # A higher winner costs less; where the order is right, doubt costs.
    assert (winner.grad[:, 0] < -0.1).all()
    assert (winner.grad[:, 1] > 0.05).all()
    torch.testing.assert_close(loser.grad[:, 0], -winner.grad[:, 0])
    torch.testing.assert_close(loser.grad[:, 1], winner.grad[:, 1])
    step = 1e-3
    slope = (expected_loss((1, step), (0, 0)) - expected_loss((1, -step), (0, 0))) / (2 * step)
    assert winner.grad[0, 1].item() == pytest.approx(slope, abs=0.02)


def test_the_gradient_is_a_number_where_both_spreads_vanish() -> None:
    winner, loser = outputs([1.0], [-200.0]).requires_grad_(), outputs([0.0], [-200.0]).requires_grad_()
    uncertainty_loss(winner, loser, draws(9, 1)).sum().backward()
    torch.testing.assert_close(winner.grad, torch.tensor([[-torch.sigmoid(torch.tensor(-1.0)), 0.0]]))


WINNER, LOSER = outputs([1.0, 0.0, 2.0], [0.1, 0.2, 0.3]), outputs([0.0, 0.5, 2.5], [0.3, 0.2, 0.1])
TIE = torch.tensor([False, True, False])
XI = draws(50, 3, seed=5)


@pytest.mark.parametrize(
    ("kind", "ties", "expected"),
    [
        ("bradley_terry", "drop", bradley_terry_loss(WINNER[:, 0], LOSER[:, 0])),
        (
            "bradley_terry",
            "soft",
            torch.where(TIE, soft_tie_loss(WINNER[:, 0], LOSER[:, 0]), bradley_terry_loss(WINNER[:, 0], LOSER[:, 0])),
        ),
        ("bradley_terry", "rao_kupper", rao_kupper_loss(WINNER[:, 0], LOSER[:, 0], TIE, threshold=3.0)),
        ("uncertainty", "drop", uncertainty_loss(WINNER, LOSER, XI)),
        (
            "uncertainty",
            "soft",
            torch.where(
                TIE,
                uncertain_tie_loss(WINNER, LOSER, XI),
                uncertainty_loss(WINNER, LOSER, XI),
            ),
        ),
    ],
)
def test_each_kind_of_loss_is_taken_by_its_name(kind: LossKind, ties: TieKind, expected: torch.Tensor) -> None:
    found = pair_losses(WINNER, LOSER, TIE, XI, kind=kind, ties=ties, threshold=3.0)
    assert torch.equal(found, expected)
    assert found.shape == (3,)


def test_a_pairs_draws_do_not_depend_on_which_others_are_ties() -> None:
    none = torch.zeros(3, dtype=torch.bool)
    without = pair_losses(WINNER, LOSER, none, XI, kind="uncertainty", ties="soft")
    with_ties = pair_losses(WINNER, LOSER, TIE, XI, kind="uncertainty", ties="soft")
    assert torch.equal(without[~TIE], with_ties[~TIE])
    assert without[1] != with_ties[1]


def test_one_output_is_enough_where_no_spread_is_asked_for() -> None:
    found = pair_losses(WINNER[:, :1], LOSER[:, :1], TIE, None, kind="bradley_terry", ties="drop")
    assert torch.equal(found, bradley_terry_loss(WINNER[:, 0], LOSER[:, 0]))
