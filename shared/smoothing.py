"""Gaussian smoothing on a voxel grid."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

__all__ = ["gaussian_smooth"]


def gaussian_smooth(x: Tensor, sigma: float) -> Tensor:
    """Smooth every channel by a Gaussian cut off at three sigma and summing to one, the edge repeated.

    Weighted sums of shifted copies: no convolution is quicker on the CPU.

    Args:
        x: (B, C, *S), floating point.
        sigma: in voxels, along every axis; 0 returns ``x`` itself.

    Returns:
        (B, C, *S).
    """
    if sigma <= 0:
        return x
    radius = math.ceil(3 * sigma)
    weights = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(radius + 1)]
    norm = 2 * sum(weights) - weights[0]
    d = x.ndim - 2
    for axis in range(d):
        dim = axis + 2
        n = x.shape[dim]
        if n == 1:
            continue
        padded = F.pad(x, [0, 0] * (d - 1 - axis) + [radius, radius] + [0, 0] * axis, mode="replicate")
        x = padded.narrow(dim, radius, n) * (weights[0] / norm)
        for k in range(1, radius + 1):
            x.add_(padded.narrow(dim, radius - k, n), alpha=weights[k] / norm)
            x.add_(padded.narrow(dim, radius + k, n), alpha=weights[k] / norm)
    return x
