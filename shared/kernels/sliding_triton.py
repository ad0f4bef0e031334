"""What kernels share that slide a window over rows or planes: sums, what they round away, and the window's size."""

# Compile-time constants in Triton's own spelling.
# flake8: noqa: N803

from __future__ import annotations

import triton
import triton.language as tl

__all__: list[str] = []


@triton.jit
def _plus(total, rest, value):
    """Add to a sum; what that rounds away goes to the rest."""
    new = total + value
    part = new - total
    return new, rest + ((total - (new - part)) + (value - part))


@triton.jit
def _plus_each(x1, y1, x2, y2, xy, rx1, ry1, rx2, ry2, rxy, a, b, c, d, e):
    """Add to five sums and their rests."""
    x1, rx1 = _plus(x1, rx1, a)
    y1, ry1 = _plus(y1, ry1, b)
    x2, rx2 = _plus(x2, rx2, c)
    y2, ry2 = _plus(y2, ry2, d)
    xy, rxy = _plus(xy, rxy, e)
    return x1, y1, x2, y2, xy, rx1, ry1, rx2, ry2, rxy


@triton.jit
def _load_each(place, count, mask):
    """Load the five sums of a plane."""
    x1, y1 = tl.load(place, mask, 0.0), tl.load(place + count, mask, 0.0)
    x2, y2 = tl.load(place + 2 * count, mask, 0.0), tl.load(place + 3 * count, mask, 0.0)
    return x1, y1, x2, y2, tl.load(place + 4 * count, mask, 0.0)


@triton.jit
def _along(at, size, RADIUS: tl.constexpr):
    """Return how many voxels of the window about ``at`` lie in an axis."""
    return tl.minimum(at + RADIUS, size - 1) - tl.maximum(at - RADIUS, 0) + 1
