"""What the policy of a run takes, measured on a few of its blocks and continued to all of them.

Blocks of a kind are alike, so each adds the same bytes and FLOPs, and so does each sample of a forward: two depths and
two numbers of samples tell all others exactly. Kinds differ in whether a block has a second attention of image tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cache
from typing import Any

from flowrl.plan.policy_measure import AdapterShape, Geometry, PolicyCost, measure_policy

_DUAL = "dual_attention_layers"  # of a config.json: the numbers of the blocks with a second attention
_FEW = 2  # blocks of a kind of which one more is like any other: the first and the last one differ
_SAMPLES = 2  # one sample alone can save a copy


def policy_cost(
    transformer: Mapping[str, Any],
    geometry: Geometry,
    adapter: AdapterShape,
    *,
    with_reference: bool,
    gradient_checkpointing: bool,
) -> PolicyCost:
    """The cost of a policy with the transformer that `transformer`, its config.json, describes.

    `with_reference` computes the KL's reference velocity in the update.
    """
    blocks, settings = int(transformer["num_layers"]), json.dumps(dict(transformer), sort_keys=True)
    dual = list(transformer.get(_DUAL) or [])

    def stack(samples: int, dual: int, plain: int) -> PolicyCost:
        return _measured(
            settings,
            dual,
            plain,
            replace(geometry, samples=samples),
            adapter,
            with_reference,
            gradient_checkpointing,
        )

    def of_plain(samples: int) -> PolicyCost:
        if blocks <= _FEW:
            return stack(samples, 0, blocks)
        few = stack(samples, 0, _FEW)
        return _more(few, (stack(samples, 0, _FEW + 1), blocks - _FEW))

    def of_both(samples: int) -> PolicyCost:
        few = stack(samples, _FEW, _FEW)
        another = (stack(samples, _FEW + 1, _FEW), len(dual) - _FEW), (stack(samples, _FEW, _FEW + 1), plain - _FEW)
        return _more(few, *another)

    def for_samples(first: PolicyCost, second: PolicyCost) -> PolicyCost:
        return _more(first, (second, geometry.samples - _SAMPLES))

    if not dual:
        return for_samples(of_plain(_SAMPLES), of_plain(_SAMPLES + 1))
    plain = blocks - len(dual)
    if dual != list(range(len(dual))) or min(len(dual), plain) < _FEW:
        return measure_policy(
            transformer,
            geometry,
            adapter,
            with_reference=with_reference,
            gradient_checkpointing=gradient_checkpointing,
        )
    cost = for_samples(of_both(_SAMPLES), of_both(_SAMPLES + 1))
    # When activations are computed again, the peak is in one block: the last of the larger kind, or of all.
    at_the_end = for_samples(of_plain(_SAMPLES), of_plain(_SAMPLES + 1))
    return replace(cost, update_rise=max(cost.update_rise, at_the_end.update_rise))


def _more(few: PolicyCost, *others: tuple[PolicyCost, int]) -> PolicyCost:
    """The cost of `few`, and so many times what each of the others has more than it."""
    base = asdict(few)
    total = dict(base)
    for other, times in others:
        for name, value in asdict(other).items():
            total[name] += times * (value - base[name])
    return PolicyCost(**total)


@cache
def _measured(
    settings: str,
    dual: int,
    plain: int,
    geometry: Geometry,
    adapter: AdapterShape,
    with_reference: bool,
    gradient_checkpointing: bool,
) -> PolicyCost:
    """The cost of a stack of so many blocks of each kind, those with two attentions first."""
    return measure_policy(
        {**json.loads(settings), "num_layers": dual + plain, _DUAL: list(range(dual))},
        geometry,
        adapter,
        with_reference=with_reference,
        gradient_checkpointing=gradient_checkpointing,
    )
