"""What the policy of a run takes, measured on a few of its blocks and continued to all of them.

Blocks of a kind are alike, so each adds the same bytes and FLOPs for each sample of a forward: a block more and a
sample more tell all others exactly. Kinds differ in whether a block has a second attention of image tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from typing import Any

from flowrl.algorithms.configs import FlowGRPOConfig
from flowrl.plan.policy_measure import AdapterShape, Geometry, PolicyCost, measure_policy

_DUAL = "dual_attention_layers"  # of a config.json: the numbers of the blocks with a second attention
_FEW = 2  # blocks of a kind of which one more is like any other: the first and the last one differ
_SAMPLES = 2  # one sample alone can save a copy
_OF_SAMPLES = ("sample_rise", "sample_flops", "update_rise", "update_flops")


def policy_cost(
    transformer: Mapping[str, Any],
    geometry: Geometry,
    adapter: AdapterShape,
    algorithm: FlowGRPOConfig,
    *,
    gradient_checkpointing: bool,
) -> PolicyCost:
    """The cost of a policy with the transformer that `transformer`, its config.json, describes.

    `algorithm` is what its update is of.
    """
    blocks, settings = int(transformer["num_layers"]), json.dumps(dict(transformer), sort_keys=True)
    dual = list(transformer.get(_DUAL) or [])
    plain = blocks - len(dual)
    if dual != list(range(len(dual))) or (dual and min(len(dual), plain) < _FEW):
        return measure_policy(transformer, geometry, adapter, algorithm, gradient_checkpointing=gradient_checkpointing)
    loss = json.dumps(asdict(algorithm), sort_keys=True)

    def stack(dual: int, plain: int, samples: int = _SAMPLES) -> PolicyCost:
        shape = replace(geometry, samples=samples)
        return _measured(settings, dual, plain, shape, adapter, loss, gradient_checkpointing)

    def of_plain(blocks: int) -> PolicyCost:
        few = min(blocks, _FEW)
        deeper = [(stack(0, few + 1), blocks - few)] if blocks > few else []
        return _continued(stack(0, few), stack(0, few, _SAMPLES + 1), deeper, geometry.samples)

    if not dual:
        return of_plain(blocks)
    deeper = [(stack(_FEW + 1, _FEW), len(dual) - _FEW), (stack(_FEW, _FEW + 1), plain - _FEW)]
    cost = _continued(stack(_FEW, _FEW), stack(_FEW, _FEW, _SAMPLES + 1), deeper, geometry.samples)
    if not gradient_checkpointing:
        return cost
    # When activations are computed again, the peak is in one block: the last of the larger kind, or of all.
    return replace(cost, update_rise=max(cost.update_rise, of_plain(blocks).update_rise))


def _continued(
    few: PolicyCost, wider: PolicyCost, deeper: Sequence[tuple[PolicyCost, int]], samples: int
) -> PolicyCost:
    """The cost of more than `few` blocks and samples.

    `wider` has one sample more, and each of `deeper` one block more, of which so many are to be added. What a block
    adds to work and activations it adds for each sample; what a sample adds besides does not depend on the blocks.
    """
    base, total, one_more = asdict(few), asdict(few), asdict(wider)
    for name, value in base.items():
        total[name] += (samples - _SAMPLES) * (one_more[name] - value)
        for other, blocks in deeper:
            added = blocks * (asdict(other)[name] - value)
            total[name] += added * samples // _SAMPLES if name in _OF_SAMPLES else added
    return PolicyCost(**total)


@cache
def _measured(
    settings: str,
    dual: int,
    plain: int,
    geometry: Geometry,
    adapter: AdapterShape,
    loss: str,
    gradient_checkpointing: bool,
) -> PolicyCost:
    """The cost of a stack of so many blocks of each kind, those with two attentions first."""
    transformer = {**json.loads(settings), "num_layers": dual + plain, _DUAL: list(range(dual))}
    algorithm = FlowGRPOConfig(**json.loads(loss))
    return measure_policy(transformer, geometry, adapter, algorithm, gradient_checkpointing=gradient_checkpointing)
