"""How much work a build of the pocket checkpoints does."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from flowrl.base.errors import UserError
from flowrl.pocket import autoencoder, generator, vision_language
from flowrl.pocket.fitting import FitPlan
from flowrl.pocket.preferences import SetPlan
from flowrl.pocket.reward_training import RewardSteps


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """How much each stage of a build does."""

    vae: FitPlan = autoencoder.PLAN
    policy: FitPlan = generator.PLAN
    policy_images: int = generator.NUM_IMAGES
    pairs: SetPlan = field(default_factory=SetPlan)
    captions: FitPlan = vision_language.CAPTION_PLAN
    rewards: RewardSteps = field(default_factory=RewardSteps)

    def scaled(self, share: float) -> BuildPlan:
        """A plan of that share of the work; a small one makes useless models, and shows that the way to them is whole.

        Raises UserError unless `share` lies in (0, 1].
        """
        if not 0 < share <= 1:
            raise UserError(f"--scale must lie in (0, 1], got {share:g}")

        def part(number: int) -> int:
            return max(1, round(number * share))

        def shorter(plan: FitPlan) -> FitPlan:
            return replace(plan, steps=part(plan.steps), warmup=part(plan.warmup))

        return BuildPlan(
            vae=shorter(self.vae),
            policy=shorter(self.policy),
            policy_images=part(self.policy_images),
            pairs=SetPlan(
                policy_train=part(self.pairs.policy_train),
                edited_train=part(self.pairs.edited_train),
                policy_test=part(self.pairs.policy_test),
                edited_test=part(self.pairs.edited_test),
            ),
            captions=shorter(self.captions),
            rewards=RewardSteps(dit_reward=part(self.rewards.dit_reward), hpsv3=part(self.rewards.hpsv3)),
        )
