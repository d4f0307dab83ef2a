"""HPSv3 (arXiv 2508.03789): a reward model on Qwen2-VL that scores pixels."""

from rewards.hpsv3.reward import HPSv3Reward

__all__ = ["HPSv3Reward"]
