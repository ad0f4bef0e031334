"""A discrete search of the displacement, for motion beyond the reach of gradients."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from ..smoothing import gaussian_smooth
from .forces import MINDSSC

__all__ = ["coupled_convex"]

# Coupling of the cheapest displacement to its smooth neighbourhood, round by round (Heinrich et al. 2014, sec. 2.2).
COUPLINGS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
MOST_COSTS = 20_000_000
# Share of the overlap without a displacement that a displacement has to leave.
LEAST_OVERLAP = 0.5


def coupled_convex(similarity: MINDSSC, radius: int) -> Tensor:
    """Search all displacements of up to ``radius`` voxels along each axis, coupled to a smooth field.

    Heinrich et al., MICCAI 2014: ``cost(x, u) + coupling |u - smooth(x)|^2`` is minimised over ``u`` for each voxel on
    its own, the result smoothed, and the coupling raised. The costs are the squared differences of the features.

    Args:
        similarity: features and weights of a coarse level.
        radius: in voxels; taken down where the costs would not fit in memory.

    Returns:
        (1, d, *S).
    """
    fixed = similarity.fixed
    size = fixed.shape[2:]
    d = len(size)
    while radius > 1 and (2 * radius + 1) ** d * fixed[0, 0].numel() > MOST_COSTS:
        radius -= 1
    offsets = list(itertools.product(range(-radius, radius + 1), repeat=d))
    # Whole voxels: the candidates are cut out of the moving features, which are seen as far as the search goes.
    moving, weight = similarity.surroundings(radius)

    def cut(volume: Tensor, offset: tuple[int, ...]) -> Tensor:
        window = (slice(radius + o, radius + o + n) for o, n in zip(offset, size, strict=True))
        where = (..., *window)
        return volume[where]

    # What hardly leaves the images an overlap cannot be judged: one read-out for all offsets.
    overlap = torch.stack([cut(weight, offset).sum() for offset in offsets])
    enough = (overlap >= LEAST_OVERLAP * overlap[len(offsets) // 2]).tolist()
    offsets = [offset for offset, kept in zip(offsets, enough, strict=True) if kept]
    costs = []
    for offset in offsets:
        cost = (cut(moving, offset) - fixed).square().mean(dim=1, keepdim=True)
        # Where the moving image does not reach, nothing speaks for or against a displacement.
        seen = cut(weight, offset)
        mean = (cost * seen).sum() / seen.sum().clamp_min(1e-6)
        costs.append(gaussian_smooth(torch.lerp(mean.expand_as(cost), cost, seen), 0.5)[0, 0].flatten())
    table = torch.stack(costs)
    table = table / table.mean()
    candidates = torch.tensor(offsets).to(table)
    smooth = _smoothed(candidates[table.argmin(dim=0)], size)
    for coupling in COUPLINGS:
        total = table.clone()
        for axis in range(d):
            away = candidates[:, axis, None] - smooth[0, axis].flatten()
            total.addcmul_(away, away, value=coupling)
        smooth = _smoothed(candidates[total.argmin(dim=0)], size)
    return smooth


def _smoothed(chosen: Tensor, size: torch.Size) -> Tensor:
    """Turn displacements (N, d) into a smooth field (1, d, *size)."""
    return gaussian_smooth(chosen.T.reshape(1, -1, *size), 1.0)
