"""Times and memory of the real shapes on one GPU, with random weights: `python -m experiments.benchmarks.gpu`."""

from flowrl.base.library_noise import hush_before_imports

hush_before_imports()  # in each of its processes, before any of them imports a library
