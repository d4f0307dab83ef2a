"""Training on a frozen base in 8 or 4 bits, and with another attention: from the configuration to the adapter."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.runs import TinyRuns, same

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "changes",
    [{"model__quantisation": "int8"}, {"model__quantisation": "int4"}, {"model__attention": "_native_math"}],
    ids=lambda changes: "-".join(changes.values()),
)
def test_rollout_and_learner_share_the_option_so_that_every_step_starts_at_ratio_exactly_1(
    runs: TinyRuns, changes: dict[str, Any], device: str
) -> None:
    allowed = 0.0 if device == "cpu" else 1e-5  # a GPU may take other kernels with gradients than without
    short = {"run__steps": 2, "eval__every": 0, "placement__device": device, "gate__max_ratio_absdev": allowed}
    run, plain = runs.run(**short, **changes), runs.run(**short)
    rows = run.metrics[1:]
    assert [row["policy/version"] for row in rows] == [2, 4]
    assert max(row["policy/ratio_absdev_max"] for row in rows) <= allowed
    assert max(row["policy/logp_absdiff_max"] for row in rows) <= allowed
    assert max(tensor.abs().max().item() for name, tensor in run.adapter.items() if ".lora_B." in name) > 1e-4
    assert run.adapter.keys() == plain.adapter.keys()
    assert not same(run.adapter, plain.adapter)
    assert rows[0]["policy/grad_norm"] == pytest.approx(plain.metrics[1]["policy/grad_norm"], rel=0.5)
