"""Folds and log Jacobian determinants of a displacement field in one pass on CUDA: one Triton kernel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["jacobian_scores"]

BLOCK = 512


@triton.jit
def _slope(field, voxel, index, n, stride, inside):
    """Difference along one axis: central inside, one-sided at the ends, 0 along an axis of one voxel."""
    before, behind = index > 0, index < n - 1
    low = tl.load(field + voxel - tl.where(before, stride, 0), mask=inside, other=0.0)
    high = tl.load(field + voxel + tl.where(behind, stride, 0), mask=inside, other=0.0)
    return tl.where(before & behind, 0.5 * (high - low), high - low)


@triton.jit
def _scores(
    field, mask, out, depth, height, width, voxels, masked: tl.constexpr, dims: tl.constexpr, size: tl.constexpr
):
    voxel = tl.program_id(0).to(tl.int64) * size + tl.arange(0, size)
    inside = voxel < voxels
    x, y, z = voxel % width, voxel // width % height, voxel // width // height
    plane = width * height
    j, k = field + (dims - 2) * voxels, field + (dims - 1) * voxels
    jj = 1.0 + _slope(j, voxel, y, height, width, inside)
    jk = _slope(j, voxel, x, width, 1, inside)
    kj = _slope(k, voxel, y, height, width, inside)
    kk = 1.0 + _slope(k, voxel, x, width, 1, inside)
    found = jj * kk - jk * kj
    if dims == 3:
        ji = _slope(j, voxel, z, depth, plane, inside)
        ki = _slope(k, voxel, z, depth, plane, inside)
        ii = 1.0 + _slope(field, voxel, z, depth, plane, inside)
        ij = _slope(field, voxel, y, height, width, inside)
        ik = _slope(field, voxel, x, width, 1, inside)
        found = ii * found + ij * (jk * ki - ji * kk) + ik * (ji * kj - jj * ki)
    counts = inside
    if masked:
        counts = inside & (tl.load(mask + voxel, mask=inside, other=0) != 0)
    log = tl.log(tl.minimum(tl.maximum(found, 1e-9), 1e9))
    log = tl.where(found == found, log, found)  # not a number stays so
    log = tl.where(counts, log, 0.0)
    number = tl.sum(tl.where(counts, 1.0, 0.0))
    mean = tl.sum(log) / tl.maximum(number, 1.0)
    apart = tl.where(counts, log - mean, 0.0)
    to = out + tl.program_id(0).to(tl.int64) * 4
    tl.store(to, number)
    tl.store(to + 1, tl.sum(tl.where(counts & (found <= 0), 1.0, 0.0)))
    tl.store(to + 2, mean)
    tl.store(to + 3, tl.sum(apart * apart))


def jacobian_scores(field: Tensor, mask: Tensor) -> Tensor:
    """Return count, folds, mean and sum of squared deviations of the log determinants: (4,) float64.

    Args:
        field: (d, *S) in voxels, contiguous, float32 or float64.
        mask: (*S) uint8, contiguous, or empty: all voxels count.
    """
    *_, height, width = field.shape
    depth, voxels = (field.shape[1] if field.ndim == 4 else 1), field[0].numel()
    blocks = triton.cdiv(voxels, BLOCK)
    parts = field.new_empty((blocks, 4))
    _scores[(blocks,)](
        field, mask, parts, depth, height, width, voxels, masked=mask.numel() > 0, dims=field.shape[0], size=BLOCK
    )
    count, folds, mean, squares = parts.double().unbind(1)
    total = count.sum()
    middle = (count * mean).sum() / total.clamp(min=1.0)
    return torch.stack([total, folds.sum(), middle, (squares + count * (mean - middle) ** 2).sum()])
