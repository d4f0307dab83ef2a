"""Experiments as SLURM jobs: an array with an element for each run, and a report after it."""
