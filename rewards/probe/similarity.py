"""How alike the layers of a backbone are: the cosine of their centred features, prompt by prompt.

The blocks of a transformer add to one residual stream, so the features of two layers lie in one basis and their cosine
means something; centred kernel alignment, which sees past rotations, is not needed, and its estimate from the few
samples of a prompt is biased towards 1 (arXiv 2010.15327). Features are centred per layer, because a direction that all
samples share makes any two layers alike (arXiv 1909.00512). Published: that similarity is high within groups of layers
and lower across them, with its standard deviation over prompts (arXiv 2606.23626 Figure 4); which similarity it is was
not, so that this one is inferred.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from rewards.probe.features import LayerFeatures


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """Of each layer with each, in [-1, 1]: the mean over prompts, and the standard deviation over prompts.

    Example: two layers, ``Similarity(layers=(0, 1), mean=((1.0, 0.7), (0.7, 1.0)), std=((0.0, 0.1), (0.1, 0.0)))``
    """

    layers: tuple[int, ...]
    mean: tuple[tuple[float, ...], ...]
    std: tuple[tuple[float, ...], ...]


def layer_similarity(features: LayerFeatures, prompt: torch.Tensor) -> Similarity:
    """Of raw features (not standardised) of N samples of the prompts [N] int64, centred over all samples.

    A prompt's similarity is the mean over its samples. Raises ValueError when there are fewer than two prompts.
    """
    numbers, place = prompt.unique(return_inverse=True)
    if len(numbers) < 2:
        raise ValueError(f"similarity has a spread over prompts, so it needs two or more, got {len(numbers)}")
    values = features.values.double()
    units = F.normalize(values - values.mean(1, keepdim=True), dim=2)
    counts = torch.bincount(place).double()
    mean, std = [], []
    for layer in units:
        cosine = (units * layer).sum(2)  # [S, N]
        sums = torch.zeros(len(units), len(numbers), dtype=torch.float64).index_add_(1, place, cosine)
        by_prompt = sums / counts
        mean.append(tuple(by_prompt.mean(1).tolist()))
        std.append(tuple(by_prompt.std(1).tolist()))
    return Similarity(layers=features.layers, mean=tuple(mean), std=tuple(std))
