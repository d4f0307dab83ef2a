"""Online RL fine-tuning of text-to-image flow models with rewards computed in latent space."""

__version__ = "0.1.0"
