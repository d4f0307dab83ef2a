"""The pocket table and its picture, from what `flowrl reward eval` measured; run by run.sh."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from rewards.data.store import PreferenceStore
from rewards.training.run import share_of

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RUNS = ROOT / "runs"
PARTS = ("attributes", "relation", "shape", "cleanliness")
SHARES = (0.25, 0.5, 1.0)


def figures(evaluation: str) -> dict[str, dict[str, Any]]:
    """By benchmark and label: accuracy, interval and by category."""
    result = json.loads((RUNS / evaluation / "result.json").read_text(encoding="utf-8"))
    found: dict[str, dict[str, Any]] = {}
    for benchmark in result["benchmarks"]:
        protocol = benchmark["protocols"][0]
        rows = {one["label"]: dict(one) for one in protocol["figures"]}
        for category in protocol["by_category"]:
            for one in category["figures"]:
                rows[one["label"]][category["category"]] = one["accuracy"]
        found[benchmark["name"]] = rows
    return found


def percent(one: dict[str, Any]) -> str:
    """An accuracy with its interval."""
    low, high = (100 * one["interval"][end] for end in ("low", "high"))
    return f"{100 * one['accuracy']:.1f} [{low:.1f}, {high:.1f}]"


def main() -> None:
    """Write table.md and picture.png."""
    table, growth = figures("pocket-table"), figures("pocket-growth")
    policy, rollout, edited = (table[name] for name in ("policy samples", "one rollout setting", "edited renderings"))
    lines = [
        "| reward | policy samples | attributes / relation / shape / cleanliness | one rollout setting | edited |",
        "|---|---|---|---|---|",
    ]
    for label, one in policy.items():
        parts = " / ".join(f"{100 * one[f'policy/{part}']:.0f}" for part in PARTS)
        lines.append(f"| {label} | {percent(one)} | {parts} | {percent(rollout[label])} | {percent(edited[label])} |")
    train = PreferenceStore(RUNS / "pocket-preferences" / "train")
    counts = [len(share_of(train.pairs, train.prompt, share)) for share in SHARES]
    arms = list(dict.fromkeys(label.rpartition(", ")[0] for label in growth["policy samples"]))
    heads = " | ".join(f"{100 * share:.0f} % ({count:,} pairs)" for share, count in zip(SHARES, counts, strict=True))
    lines += ["", f"| policy samples | {heads} |", "|---|---|---|---|"]
    for arm in arms:
        cells = " | ".join(percent(growth["policy samples"][f"{arm}, {100 * share:.0f} %"]) for share in SHARES)
        lines.append(f"| {arm} | {cells} |")
    (HERE / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    draw(policy, edited, growth["policy samples"], arms, counts)


def draw(
    policy: dict[str, Any], edited: dict[str, Any], growth: dict[str, Any], arms: list[str], counts: list[int]
) -> None:
    """Accuracies as points with intervals, and accuracy against the number of pairs."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), width_ratios=(3, 2), layout="constrained")
    labels = list(policy)[::-1]
    for rows, shift, name in ((policy, 0.12, "the policy's samples"), (edited, -0.12, "edited renderings")):
        middle = torch.tensor([100 * rows[label]["accuracy"] for label in labels])
        low = middle - torch.tensor([100 * rows[label]["interval"]["low"] for label in labels])
        high = torch.tensor([100 * rows[label]["interval"]["high"] for label in labels]) - middle
        places = [place + shift for place in range(len(labels))]
        left.errorbar(middle, places, xerr=torch.stack([low, high]), fmt="o", label=name, capsize=2)
    left.set_yticks(range(len(labels)), labels)
    left.axvline(50, color="0.7", linewidth=1)
    left.set_xlabel("held-out pairs ordered as the oracle does, %")
    left.legend(loc="upper left", frameon=False)
    for arm in arms:
        values = [growth[f"{arm}, {100 * share:.0f} %"] for share in SHARES]
        middle = torch.tensor([100 * one["accuracy"] for one in values])
        low = middle - torch.tensor([100 * one["interval"]["low"] for one in values])
        high = torch.tensor([100 * one["interval"]["high"] for one in values]) - middle
        right.errorbar(counts, middle, yerr=torch.stack([low, high]), fmt="o-", label=arm, capsize=2)
    right.set_xscale("log", base=2)
    right.set_xticks(counts, [f"{count:,}" for count in counts])
    right.minorticks_off()
    right.set_xlabel("training pairs")
    right.set_ylabel("the policy's samples, %")
    right.legend(loc="lower right", frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE / "picture.png", dpi=110)


if __name__ == "__main__":
    main()
