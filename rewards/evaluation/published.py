"""The published pairwise accuracies, with their sources, and which test set each column stands for.

The figures are copied from papers and READMEs, never measured here; a table shows them marked "published".
"""

from __future__ import annotations

from dataclasses import dataclass

DIT_REWARD = "DiT-Reward, Table 1 (arXiv 2606.23626)"
BOTH = "DiT-Reward, Table 1 (arXiv 2606.23626), equal to HPSv3's table (arXiv 2508.03789)"
HPSV3 = "HPSv3 README (MizzenAI/HPSv3)"
HPSV2 = "HPSv2 README (tgxs002/HPSv2)"
VISION_REWARD = "VisionReward, Table 2 (arXiv 2412.21059)"


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """One column of the table: a benchmark under the name that papers give it."""

    __test__ = False  # pytest: this is no test

    key: str
    title: str
    data: str  # the file or split that is tested on
    protocol: str  # of `rewards.evaluation.accuracy`, that its column is taken to use


# DiT-Reward does not state its protocols. Its figures for older models are HPSv3's, so it is taken to have used
# HPSv3's: that is inferred.
TEST_SETS: dict[str, TestSet] = {
    one.key: one
    for one in (
        TestSet(
            key="image_reward",
            title="ImageReward",
            data="ImageReward's data/test.json, rankings of about 466 prompts",
            protocol="rankings_pooled",
        ),
        TestSet(
            key="pickscore",
            title="PickScore",
            data="Pick-a-Pic v1, split test_unique, about 500 pairs with ties",
            protocol="tie_aware",
        ),
        TestSet(
            key="hpdv2", title="HPDv2", data="HPDv2's test.json, rankings of 9 images", protocol="rankings_per_prompt"
        ),
        TestSet(key="hpdv3", title="HPDv3", data="HPDv3's test pairs as published", protocol="pairs"),
    )
}


@dataclass(frozen=True, kw_only=True)
class PublishedAccuracy:
    """One published figure.

    Example: ``PublishedAccuracy(model="HPSv3", test_set="hpdv3", percent=76.9, source="HPSv3 README")``
    """

    model: str
    test_set: str  # key of TEST_SETS
    percent: float
    source: str
    note: str = ""


def _row(
    model: str,
    image_reward: float | None,
    pickscore: float | None,
    hpdv2: float | None,
    hpdv3: float | None,
    source: str,
) -> list[PublishedAccuracy]:
    values = zip(TEST_SETS, (image_reward, pickscore, hpdv2, hpdv3), strict=True)
    return [
        PublishedAccuracy(model=model, test_set=key, percent=percent, source=source)
        for key, percent in values
        if percent is not None
    ]


PUBLISHED: tuple[PublishedAccuracy, ...] = (
    *_row("CLIP ViT-H/14", 57.1, 60.8, 65.1, 48.6, BOTH),
    *_row("Aesthetic", 57.4, 56.8, 76.8, 59.9, BOTH),
    *_row("ImageReward", 65.1, 61.1, 74.0, 58.6, BOTH),
    *_row("PickScore", 61.6, 70.5, 79.8, 65.6, BOTH),
    *_row("HPS", 61.2, 66.7, 77.6, 63.8, BOTH),
    *_row("HPSv2", 65.7, 63.8, 83.3, 65.3, BOTH),
    *_row("HPSv2.1", 66.8, None, 84.1, None, HPSV2),
    *_row("MPS", 67.5, 63.1, 83.5, 64.3, DIT_REWARD),
    *_row("VisionReward", None, None, 81.7, None, VISION_REWARD),
    *_row("HPSv3", 66.8, None, 85.4, 76.9, HPSV3),
    PublishedAccuracy(
        model="HPSv3",
        test_set="pickscore",
        percent=72.8,
        source=HPSV3,
        note="65.1 in DiT-Reward's Table 1: measured again, or on another split",
    ),
    *_row("DiT-Reward", 67.0, 66.7, 85.6, 77.6, DIT_REWARD),
    *_row("DiT-Reward, SD3.5-Medium", 57.9, 60.9, 79.7, 71.5, "DiT-Reward, Table 3 (arXiv 2606.23626)"),
    *_row("DiT-Reward, frozen SD3.5-Large", 57.5, 60.9, 78.0, 72.3, "DiT-Reward, Table 3 (arXiv 2606.23626)"),
    *_row("single human", 65.3, None, 78.1, None, HPSV2),
)
