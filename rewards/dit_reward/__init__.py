"""DiT-Reward (arXiv 2606.23626): a reward model on a pretrained diffusion transformer that scores latents."""

from rewards.dit_reward.reward import DiTReward

__all__ = ["DiTReward"]
