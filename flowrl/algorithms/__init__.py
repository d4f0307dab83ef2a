"""Algorithms: one file each, with advantages and loss; their configurations are in `configs`, free of torch."""
