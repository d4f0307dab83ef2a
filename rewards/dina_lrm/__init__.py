"""DiNa-LRM (arXiv 2602.11146): a latent reward model on the first blocks of Stable Diffusion 3.5 Medium."""

from rewards.dina_lrm.reward import DiNaLRM

__all__ = ["DiNaLRM"]
