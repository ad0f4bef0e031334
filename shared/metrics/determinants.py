"""Jacobian determinants of a field: the map, some slices at a time, and what is made of it without a map."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..fields import jacobian_determinant
from ..kernels import warp_backend

__all__ = ["DeterminantScores", "determinant_scores", "determinants", "scores_of"]

# Slices looked at together: determinants take several times the memory of their part of the field.
SLAB = 32
# Differences at the end of a slab are central, as they are in the whole.
MARGIN = 2


class DeterminantScores(NamedTuple):
    """Of the voxels that count: share of folds in percent, and standard deviation of the log determinant."""

    folds_percent: float
    sdlogj: float


@torch.no_grad()
def determinants(ddf: Tensor) -> Tensor:
    """Return ``det(I + d(ddf)/dx)`` (*S) of a field (1, d, *S), some slices at a time, to save memory."""
    n = ddf.shape[2]
    result = ddf.new_empty(ddf.shape[2:])
    for first in range(0, n, SLAB):
        low, high = max(0, first - MARGIN), min(n, first + SLAB + MARGIN)
        result[first : first + SLAB] = jacobian_determinant(ddf[:, :, low:high])[0, 0, first - low :][:SLAB]
    return result


def scores_of(determinant: Tensor) -> DeterminantScores:
    """Return the scores of determinants of any shape; NaN where there are none."""
    values = determinant.flatten()
    if values.numel() == 0:
        return DeterminantScores(math.nan, math.nan)
    logs = values.double().clamp(1e-9, 1e9).log()
    return DeterminantScores(100.0 * float((values <= 0).double().mean()), float(logs.std(unbiased=False)))


@torch.no_grad()
def determinant_scores(ddf: Tensor, mask: Tensor | None = None) -> DeterminantScores:
    """Return both scores of a field; with the compiled kernels in one pass over it, without a map.

    Args:
        ddf: (1, d, *S) in voxels.
        mask: (*S); voxels that are not zero count. None: all.

    Returns:
        the scores; NaN for an empty mask.
    """
    if not _kernel_serves(ddf):
        found = determinants(ddf)
        return scores_of(found if mask is None else found[mask.to(ddf.device) != 0])
    inside = torch.empty(0) if mask is None else mask != 0
    inside = inside.to(ddf.device, torch.uint8).contiguous()
    count, folds, _, squares = torch.ops.registration.jacobian_scores(ddf[0].contiguous(), inside).tolist()
    if count == 0:
        return DeterminantScores(math.nan, math.nan)
    return DeterminantScores(100.0 * (folds / count), math.sqrt(squares / count))


def _kernel_serves(ddf: Tensor) -> bool:
    fits = ddf.dtype in (torch.float32, torch.float64) and ddf.numel() > 0 and ddf.ndim in (4, 5)
    return fits and ddf.shape[1] == ddf.ndim - 2 and warp_backend(ddf.device.type).name != "torch"
