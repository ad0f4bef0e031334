"""Joint histogram of two images with Gaussian windows on CUDA, and its adjoint, in Triton.

The weights are those of ``histogram_cpu.cpp``: the seven bins next to an intensity get all but rounding. Every program
sums a histogram of its own as a product of matrices, weights of one image by weights of the other; these histograms are
added in one order, so that the bits are the same from call to call. With ``TRITON_INTERPRET=1``, set before this module
is imported, the kernels run on CPU tensors.
"""

# Sizes and compile-time constants in Triton's own spelling.
# flake8: noqa: N803

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["joint_histogram", "joint_histogram_adjoint"]

REACH = 3
# Voxels that one program counts in its own precision; more where the programs' histograms together would take more.
STRETCH, ROOM = 1 << 12, 1 << 24
# Voxels whose weights a program holds at a time, and bins along an edge of its histogram.
TILE, MOST_BINS = 32, 64
BLOCK = 256


@triton.jit
def _place(image, at, count, bins, K: tl.constexpr, REACH: tl.constexpr):
    """Return intensities in bins, the nearest bins, one over the sum of the weights there, and what is in [0, 1]."""
    raw = tl.load(image + at, at < count, 0.0)
    t = tl.where(raw > 0, tl.where(raw < 1, raw, 1.0), 0.0) * (bins - 1)  # NaN gives 0
    nearest = (t + 0.5).to(tl.int32)
    total = t * 0.0
    for step in tl.static_range(2 * REACH + 1):
        bin_ = nearest + (step - REACH)
        distance = t - bin_
        total += tl.where((bin_ >= 0) & (bin_ < bins), tl.exp(-K * distance * distance), 0.0)
    return t, nearest, 1 / total, tl.where((raw >= 0) & (raw <= 1), 1.0, 0.0)


@triton.jit
def _weights(image, at, count, end, centres, bins, K: tl.constexpr, REACH: tl.constexpr):
    """Return the weights of voxels for bins, (voxels, bins)."""
    t, nearest, scale, _ = _place(image, at, count, bins, K, REACH)
    distance = t[:, None] - centres[None, :]
    near = tl.abs(centres[None, :] - nearest[:, None]) <= REACH
    inside = (at < end)[:, None] & (centres < bins)[None, :]
    return tl.where(near & inside, tl.exp(-K * distance * distance) * scale[:, None], 0.0)


@triton.jit
def _count(
    x, y, out, count, bins, K: tl.constexpr, REACH: tl.constexpr, STRETCH: tl.constexpr, TILE: tl.constexpr,
    BINS: tl.constexpr,
):  # fmt: skip
    """Count a stretch of voxels into a block of bins."""
    parts = tl.cdiv(bins, BINS)
    row = tl.program_id(1) // parts * BINS + tl.arange(0, BINS)
    col = tl.program_id(1) % parts * BINS + tl.arange(0, BINS)
    n = tl.program_id(2).to(tl.int64)
    first = tl.program_id(0) * STRETCH
    end = tl.minimum(first + STRETCH, count)
    total = tl.zeros([BINS, BINS], x.dtype.element_ty)
    for start in range(0, end - first, TILE):
        at = first + start + tl.arange(0, TILE)
        a = _weights(x + n * count, at, count, end, row, bins, K, REACH)
        b = _weights(y + n * count, at, count, end, col, bins, K, REACH)
        total += tl.dot(tl.trans(a), b, input_precision="ieee", out_dtype=x.dtype.element_ty)
    to = out + (n * tl.num_programs(0) + tl.program_id(0)) * bins * bins
    tl.store(to + row[:, None] * bins + col[None, :], total, (row < bins)[:, None] & (col < bins)[None, :])


@triton.jit
def _pull(
    slopes, x, y, to_x, to_y, count, bins, K: tl.constexpr, REACH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients to both images from that to the bins: ``d w_j / d t = 2 k w_j (j - mean of j)``."""
    n = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    t, near_x, scale_x, inside_x = _place(x + n * count, at, count, bins, K, REACH)
    u, near_y, scale_y, inside_y = _place(y + n * count, at, count, bins, K, REACH)
    mean_x, mean_y, pull, pull_x, pull_y = t * 0.0, t * 0.0, t * 0.0, t * 0.0, t * 0.0
    for i in range(2 * REACH + 1):
        row = near_x + (i - REACH)
        in_row = mask & (row >= 0) & (row < bins)
        a = tl.where(in_row, tl.exp(-K * (t - row) * (t - row)) * scale_x, 0.0)
        across, along, mean_y = u * 0.0, u * 0.0, u * 0.0
        for j in tl.static_range(2 * REACH + 1):
            col = near_y + (j - REACH)
            in_col = (col >= 0) & (col < bins)
            b = tl.where(in_col, tl.exp(-K * (u - col) * (u - col)) * scale_y, 0.0)
            slope = b * tl.load(slopes + (n * bins + row) * bins + col, in_row & in_col, 0.0)
            mean_y += b * (j - REACH)
            across += slope
            along += slope * (j - REACH)
        mean_x += a * (i - REACH)
        pull += a * across
        pull_x += a * across * (i - REACH)
        pull_y += a * along
    scale = 2.0 * K * (bins - 1)
    tl.store(to_x + n * count + at, scale * inside_x * (pull_x - mean_x * pull), mask)
    tl.store(to_y + n * count + at, scale * inside_y * (pull_y - mean_y * pull), mask)


def joint_histogram(x: Tensor, y: Tensor, bins: int, k: float) -> Tensor:
    """Return (B, bins, bins) in float64, sums over voxels of both images' weights.

    Args:
        x: (B, N) in [0, 1], contiguous, float32, or float64 where Triton multiplies matrices of it.
        y: as ``x``.
        bins: 2 to 4096.
        k: 1 / (2 sigma^2), in bins; such that seven bins hold all but rounding.
    """
    batch, count = x.shape
    block = max(16, min(MOST_BINS, triton.next_power_of_2(bins)))
    stretch = STRETCH
    while batch * bins * bins * (count // stretch) > ROOM:
        stretch *= 2
    stretches, parts = triton.cdiv(count, stretch), triton.cdiv(bins, block)
    found = x.new_empty((batch, stretches, bins, bins))
    _count[(stretches, parts * parts, batch)](
        x, y, found, count, bins, K=k, REACH=REACH, STRETCH=stretch, TILE=TILE, BINS=block
    )
    return found.sum(dim=1, dtype=torch.float64)


def joint_histogram_adjoint(grad: Tensor, x: Tensor, y: Tensor, k: float) -> tuple[Tensor, Tensor]:
    """Return the gradients to both images, from ``grad`` (B, bins, bins), contiguous; see :func:`joint_histogram`."""
    batch, count = x.shape
    to_x, to_y = torch.empty_like(x), torch.empty_like(y)
    _pull[(triton.cdiv(count, BLOCK), batch)](
        grad, x, y, to_x, to_y, count, grad.shape[1], K=k, REACH=REACH, BLOCK=BLOCK
    )
    return to_x, to_y
