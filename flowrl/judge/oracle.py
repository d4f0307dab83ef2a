"""The oracle of the pocket world as a judge: the truth, for nothing."""

from __future__ import annotations

from collections.abc import Generator, Iterable

import torch

from flowrl.core.seeds import evaluation_seeds
from flowrl.judge.judgement import HIGHEST, LOWEST, OVERALL, Judgement
from flowrl.registry import resolve
from flowrl.reward_call import RewardInputError, call_reward
from flowrl.reward_protocols import Reward
from flowrl.types import RewardInput

# The rewards, by their names in the registry, that measure the dimensions.
_REWARDS = {
    "attributes": "oracle_attributes",
    "relation": "oracle_relation",
    "shape": "oracle_shape",
    "cleanliness": "oracle_cleanliness",
    OVERALL: "oracle",
}


class OracleJudge:
    """Measures pocket images against their prompts; fits `flowrl.judge.judgement.Judge`.

    Its dimensions are the oracle's own parts, and its total as the overall; what lies in [0, 1] there lies in [1, 10]
    here, by a straight line.
    """

    name = "oracle"
    dimensions: tuple[str, ...] = tuple(_REWARDS)

    def __init__(self) -> None:
        self._rewards = [_reward(name) for name in _REWARDS.values()]

    def judge(self, images: Iterable[torch.Tensor], prompts: Iterable[str]) -> Generator[Judgement, None, None]:
        """One judgement per image, in their order; rejected where the image or the prompt is not the pocket world's."""
        for image, prompt in zip(images, prompts, strict=True):
            yield self._judge_one(image, prompt)

    def _judge_one(self, image: torch.Tensor, prompt: str) -> Judgement:
        batch = RewardInput(prompts=(prompt,), seeds=evaluation_seeds([prompt]), pixels=image[None].float() / 255)
        try:
            parts = [float(call_reward(reward, batch)[0]) for reward in self._rewards]
        except RewardInputError as error:
            return Judgement(outcome="rejected", problem=f"rejected: {error}")
        return Judgement(outcome="scored", scores=tuple(LOWEST + (HIGHEST - LOWEST) * part for part in parts))


def _reward(name: str) -> Reward:
    factory, options = resolve("reward", name)
    reward: Reward = factory(part=options["part"])
    return reward
