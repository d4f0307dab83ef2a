"""Algorithms: one file each, with its configuration, advantages and loss."""
