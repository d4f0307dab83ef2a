"""Scores images and latents that lie in files, with any rewards: what `flowrl score` does."""
