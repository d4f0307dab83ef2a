"""A probe's configuration: the layers and pairs that it chooses, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowrl.base.config_tree import ConfigError
from rewards.probe.config import INPUT, ProbeConfig, StoreSection, chosen_layers, chosen_pairs, load

POCKET = Path(__file__).parents[2] / "configs/reward/pocket/probe.yaml"


def test_the_layers_and_pairs_of_a_config() -> None:
    made = ProbeConfig(data=StoreSection(store="sets"))
    assert chosen_layers(made, 2) == (INPUT, 0, 1)
    assert chosen_pairs(made, (INPUT, 0, 1)) == [(INPUT, 0), (INPUT, 1), (0, 1)]
    made.layers, made.pairs, made.listed_pairs = [0, 3], "listed", [[0, 3]]
    assert chosen_layers(made, 4) == (0, 3)
    assert chosen_pairs(made, (0, 3)) == [(0, 3)]
    with pytest.raises(ConfigError, match="3 does not exist in a backbone of 3 blocks; use -1 to 2"):
        chosen_layers(made, 3)
    made.listed_pairs = [[3, 0]]
    with pytest.raises(ConfigError, match=r"listed_pairs\[0\] must be two of the layers \[0, 3\], ascending"):
        chosen_pairs(made, (0, 3))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.store=", "data.store must name the folder"),
        ("layers=[2,1]", "layers must be ascending"),
        ("head.dims=[0]", r"head\.dims must be positive"),
        ("head.seeds=0", r"head\.seeds must be at least 1"),
        ("model.sigma=1", r"model\.sigma must lie in \[0, 1\)"),
        ("listed_pairs=[[0,1]]", "read with pairs=listed"),
    ],
)
def test_a_config_that_cannot_be_run_says_which_key(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(POCKET, [override])


def test_the_pocket_config_probes_every_layer_and_pair() -> None:
    layers = chosen_layers(load(POCKET, []), 6)
    assert layers == (INPUT, 0, 1, 2, 3, 4, 5)
    assert len(chosen_pairs(load(POCKET, []), layers)) == 21
