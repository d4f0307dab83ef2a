"""Experiments of matched runs: the same configuration with other rewards and seeds, expanded, checked and run."""
