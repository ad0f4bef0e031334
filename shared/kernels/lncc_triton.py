"""Local cross-correlation on CUDA: sums over sliding windows in Triton, the value and both gradients formed together.

A window is summed along the last axis voxel by voxel, out of the cache. Along the other axes it slides: what comes in
is added, what leaves is taken off, and what the additions round away is carried along (Knuth's two-sum), so that sums
over a dark background after a bright organ keep their digits. Five sums are found in every plane, of x, y and their
products, then across planes; there the correlation comes out, with three maps whose windowed sums make up the gradient
to an image. Nothing is added by atomics: the bits are the same from call to call. A 2D image is one plane. With
``TRITON_INTERPRET=1``, set before this module is imported, the kernels run on CPU tensors.
"""

# Sizes and compile-time constants in Triton's own spelling.
# flake8: noqa: N803

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .sliding_triton import _along, _load_each, _plus, _plus_each

__all__ = ["local_ncc"]

BLOCK, WARPS = 256, 8  # a thread a lane: with two, the sums of a row take most of the registers
# Rows or planes that one program slides over; the first window of a program is summed anew.
STRETCH = 32


@triton.jit
def _row_moments(x, y, shift_x, shift_y, row, col, width, H, W, RADIUS: tl.constexpr):
    """Return the sums of x, y, xx, yy and xy over the window's part in a row of a plane."""
    sum_x = tl.zeros_like(shift_x)
    sum_y, sum_xx, sum_yy, sum_xy = sum_x, sum_x, sum_x, sum_x
    end = width * tl.where((row >= 0) & (row < H), 1, 0)  # nothing lies in a row outside
    for step in tl.static_range(2 * RADIUS + 1):
        at = col + (step - RADIUS)
        inside = (at >= 0) & (at < end)
        a = tl.where(inside, tl.load(x + row * W + at, inside, 0.0) - shift_x, 0.0)
        b = tl.where(inside, tl.load(y + row * W + at, inside, 0.0) - shift_y, 0.0)
        sum_x += a
        sum_y += b
        sum_xx += a * a
        sum_yy += b * b
        sum_xy += a * b
    return sum_x, sum_y, sum_xx, sum_yy, sum_xy


@triton.jit
def _moments(
    x, y, shifts_x, shifts_y, out, planes, D, H, W, count,
    RADIUS: tl.constexpr, STRETCH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum x, y, xx, yy and xy, less the images' means, over the windows' parts in each plane."""
    stretches = tl.cdiv(H, STRETCH)
    first = tl.program_id(0) % stretches * STRETCH
    lane = (tl.program_id(0) // stretches).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    within = lane < planes * W
    plane, col = lane // W, (lane % W).to(tl.int32)
    shift_x, shift_y = tl.load(shifts_x + plane // D, within, 0.0), tl.load(shifts_y + plane // D, within, 0.0)
    x += plane * H * W
    y += plane * H * W
    out += plane * H * W + col
    width = tl.where(within, W, 0)
    x1 = tl.zeros_like(shift_x)
    y1, x2, y2, xy = x1, x1, x1, x1
    rx1, ry1, rx2, ry2, rxy = x1, x1, x1, x1, x1
    for step in range(tl.minimum(STRETCH, H - first) + 2 * RADIUS):
        row = first + (step - RADIUS)
        a, b, c, d, e = _row_moments(x, y, shift_x, shift_y, row, col, width, H, W, RADIUS)
        x1, y1, x2, y2, xy, rx1, ry1, rx2, ry2, rxy = _plus_each(
            x1, y1, x2, y2, xy, rx1, ry1, rx2, ry2, rxy, a, b, c, d, e
        )
        centre = row - RADIUS
        if step >= 2 * RADIUS:
            to = out + centre * W
            tl.store(to, x1 + rx1, within)
            tl.store(to + count, y1 + ry1, within)
            tl.store(to + 2 * count, x2 + rx2, within)
            tl.store(to + 3 * count, y2 + ry2, within)
            tl.store(to + 4 * count, xy + rxy, within)
            a, b, c, d, e = _row_moments(x, y, shift_x, shift_y, centre - RADIUS, col, width, H, W, RADIUS)
            x1, y1, x2, y2, xy, rx1, ry1, rx2, ry2, rxy = _plus_each(
                x1, y1, x2, y2, xy, rx1, ry1, rx2, ry2, rxy, -a, -b, -c, -d, -e
            )


@triton.jit
def _row_sum(x, row, col, width, H, W, RADIUS: tl.constexpr, BLOCK: tl.constexpr):
    total = tl.zeros([BLOCK], x.dtype.element_ty)
    end = width * tl.where((row >= 0) & (row < H), 1, 0)
    for step in tl.static_range(2 * RADIUS + 1):
        at = col + (step - RADIUS)
        total += tl.load(x + row * W + at, (at >= 0) & (at < end), 0.0)
    return total


@triton.jit
def _plane_sums(x, out, planes, H, W, RADIUS: tl.constexpr, STRETCH: tl.constexpr, BLOCK: tl.constexpr):
    """Sum over the windows' parts in each plane."""
    stretches = tl.cdiv(H, STRETCH)
    first = tl.program_id(0) % stretches * STRETCH
    lane = (tl.program_id(0) // stretches).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    within = lane < planes * W
    plane, col = lane // W, (lane % W).to(tl.int32)
    x += plane * H * W
    out += plane * H * W + col
    width = tl.where(within, W, 0)
    total = tl.zeros([BLOCK], x.dtype.element_ty)
    rest = total
    for step in range(tl.minimum(STRETCH, H - first) + 2 * RADIUS):
        row = first + (step - RADIUS)
        total, rest = _plus(total, rest, _row_sum(x, row, col, width, H, W, RADIUS, BLOCK))
        centre = row - RADIUS
        if step >= 2 * RADIUS:
            tl.store(out + centre * W, total + rest, within)
            total, rest = _plus(total, rest, -_row_sum(x, centre - RADIUS, col, width, H, W, RADIUS, BLOCK))


@triton.jit
def _variance(power, total, mean, FLAT: tl.constexpr):
    """Return the sum of squares about the mean, 0 where it is nothing but rounding, and whether it is more."""
    variance = power - total * mean
    varies = variance > power * FLAT
    return tl.where(varies, variance, 0.0), varies


@triton.jit
def _central(x1, y1, x2, y2, xy, voxels, FLAT: tl.constexpr):
    """Return both means, the sums of squares about them, and that of products, of a window's five sums."""
    mean_x, mean_y = x1 / voxels, y1 / voxels
    var_x, varies_x = _variance(x2, x1, mean_x, FLAT)
    var_y, varies_y = _variance(y2, y1, mean_y, FLAT)
    return mean_x, mean_y, var_x, var_y, tl.where(varies_x & varies_y, xy - x1 * mean_y, 0.0)


@triton.jit
def _store_maps(
    to, count, within, on_cross, ratio, mean_x, mean_y, var_x, var_y, TO_X: tl.constexpr, TO_Y: tl.constexpr
):
    """Store what the gradients to the images that are asked for are sums of."""
    if TO_X or TO_Y:
        tl.store(to, on_cross, within)
    if TO_X:
        on_var_x = on_cross * ratio * var_y
        tl.store(to + count, on_var_x, within)
        tl.store(to + 2 * count, on_cross * mean_y - on_var_x * mean_x, within)
    if TO_Y:
        on_var_y = on_cross * ratio * var_x
        place = to + (2 * count if TO_X else 0)
        tl.store(place + count, on_var_y, within)
        tl.store(place + 2 * count, on_cross * mean_x - on_var_y * mean_y, within)


@triton.jit
def _correlate(
    sums, weight, out, values, C, D, H, W, count, weight_n, weight_c, weight_v, EPS: tl.constexpr, FLAT: tl.constexpr,
    TO_X: tl.constexpr, TO_Y: tl.constexpr, RADIUS: tl.constexpr, STRETCH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum across planes; store each program's part of the value and the maps that the gradients are sums of."""
    pid = tl.program_id(0)
    blocks, stretches = tl.cdiv(H * W, BLOCK), tl.cdiv(D, STRETCH)
    at = pid % blocks * BLOCK + tl.arange(0, BLOCK)
    first = (pid // blocks) % stretches * STRETCH
    image = (pid // (blocks * stretches)).to(tl.int64)
    weight += image // C * weight_n + image % C * weight_c
    within = at < H * W
    in_plane = _along(at // W, H, RADIUS) * _along(at % W, W, RADIUS)
    x1 = tl.zeros([BLOCK], sums.dtype.element_ty)
    y1, x2, y2, xy, value, rx1, ry1, rx2, ry2, rxy = x1, x1, x1, x1, x1, x1, x1, x1, x1, x1
    for step in range(tl.minimum(STRETCH, D - first) + 2 * RADIUS):
        plane = first + (step - RADIUS)
        mask = at < tl.where((plane >= 0) & (plane < D), H * W, 0)
        come = sums + (image * D + plane) * H * W + at
        a, b, c, d, e = _load_each(come, count, mask)
        x1, y1, x2, y2, xy, rx1, ry1, rx2, ry2, rxy = _plus_each(
            x1, y1, x2, y2, xy, rx1, ry1, rx2, ry2, rxy, a, b, c, d, e
        )
        centre = plane - RADIUS
        if step >= 2 * RADIUS:
            voxels = tl.maximum(in_plane * _along(centre, D, RADIUS), 1).to(x1.dtype)
            mean_x, mean_y, var_x, var_y, cross = _central(
                x1 + rx1, y1 + ry1, x2 + rx2, y2 + ry2, xy + rxy, voxels, FLAT
            )
            ratio = cross / (var_x * var_y + EPS)
            w = tl.load(weight + (centre * H * W + at) * weight_v, within, 0.0)
            value += tl.where(within, cross * ratio * w, 0.0)
            to = out + (image * D + centre) * H * W + at
            _store_maps(to, count, within, 2.0 * w * ratio, ratio, mean_x, mean_y, var_x, var_y, TO_X, TO_Y)
            left, mask = come - 2 * RADIUS * H * W, at < tl.where(centre >= RADIUS, H * W, 0)
            a, b, c, d, e = _load_each(left, count, mask)
            x1, y1, x2, y2, xy, rx1, ry1, rx2, ry2, rxy = _plus_each(
                x1, y1, x2, y2, xy, rx1, ry1, rx2, ry2, rxy, -a, -b, -c, -d, -e
            )
    tl.store(values + pid, tl.sum(value, 0))


@triton.jit
def _gradient(
    own, other, shifts_own, shifts_other, on_cross, on_var, offsets, out, D, plane_size,
    RADIUS: tl.constexpr, STRETCH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum the three maps across planes: ``d cross / d own = other - mean``, ``d var / d own = 2 (own - mean)``."""
    pid = tl.program_id(0)
    blocks, stretches = tl.cdiv(plane_size, BLOCK), tl.cdiv(D, STRETCH)
    at = pid % blocks * BLOCK + tl.arange(0, BLOCK)
    first = (pid // blocks) % stretches * STRETCH
    image = (pid // (blocks * stretches)).to(tl.int64)
    shift_own, shift_other = tl.load(shifts_own + image), tl.load(shifts_other + image)
    within = at < plane_size
    cross = tl.zeros([BLOCK], shift_own.dtype)
    var, offset, rest_cross, rest_var, rest_offset = cross, cross, cross, cross, cross
    for step in range(tl.minimum(STRETCH, D - first) + 2 * RADIUS):
        plane = first + (step - RADIUS)
        mask = at < tl.where((plane >= 0) & (plane < D), plane_size, 0)
        come = (image * D + plane) * plane_size + at
        cross, rest_cross = _plus(cross, rest_cross, tl.load(on_cross + come, mask, 0.0))
        var, rest_var = _plus(var, rest_var, tl.load(on_var + come, mask, 0.0))
        offset, rest_offset = _plus(offset, rest_offset, tl.load(offsets + come, mask, 0.0))
        centre = plane - RADIUS
        if step >= 2 * RADIUS:
            place = (image * D + centre) * plane_size + at
            a = tl.load(own + place, within, 0.0) - shift_own
            b = tl.load(other + place, within, 0.0) - shift_other
            found = b * (cross + rest_cross) - a * (var + rest_var) - (offset + rest_offset)
            tl.store(out + place, found, within)
            mask = at < tl.where(centre >= RADIUS, plane_size, 0)
            left = come - 2 * RADIUS * plane_size
            cross, rest_cross = _plus(cross, rest_cross, -tl.load(on_cross + left, mask, 0.0))
            var, rest_var = _plus(var, rest_var, -tl.load(on_var + left, mask, 0.0))
            offset, rest_offset = _plus(offset, rest_offset, -tl.load(offsets + left, mask, 0.0))


def _programs(length: int, lanes: int) -> tuple[int]:
    return (triton.cdiv(length, STRETCH) * triton.cdiv(lanes, BLOCK),)


def local_ncc(
    x: Tensor, y: Tensor, weight: Tensor, window: int, eps: float, to_x: bool, to_y: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weighted sum of squared local correlations, and its gradient to the images that are asked for.

    Args:
        x: (B, C, *S), contiguous, float32 or float64, 2 or 3 spatial dims.
        y: as ``x``.
        weight: (B or 1, C or 1, *S or ones), contiguous, of the same type.
        window: odd edge length in voxels.
        eps: keeps constant windows from dividing by zero; see ``LocalNCCLoss``.
        to_x: the gradient to ``x`` as well.
        to_y: the gradient to ``y`` as well.

    Returns:
        (B,), and two of (B, C, *S) or empty.
    """
    batch, channels = x.shape[:2]
    depth, height, width = x.shape[2:] if x.ndim == 5 else (1, *x.shape[2:])
    images, count, radius = batch * channels, x.numel(), window // 2
    # Sums of squares about zero cancel when intensities are far from it (CT in HU, float32).
    shifts = x.flatten(2).mean(dim=2), y.flatten(2).mean(dim=2)
    constants = {"RADIUS": radius, "STRETCH": STRETCH, "BLOCK": BLOCK, "num_warps": WARPS}
    sums = x.new_empty((5, images, depth, height, width))
    planes = images * depth
    _moments[_programs(height, planes * width)](
        x, y, *shifts, sums, planes, depth, height, width, count, **constants
    )  # fmt: skip
    maps = x.new_empty((1 + 2 * (to_x + to_y) if to_x or to_y else 0, *sums.shape[1:]))
    across = (images * _programs(depth, height * width)[0],)
    values = x.new_empty((batch, across[0] // batch))
    steps = [0 if size == 1 else step for size, step in zip(weight.shape[:2], weight.stride()[:2], strict=True)]
    _correlate[across](
        sums, weight, maps, values, channels, depth, height, width, count, *steps, int(weight.shape[2:].numel() > 1),
        EPS=eps, FLAT=16 * torch.finfo(x.dtype).eps, TO_X=to_x, TO_Y=to_y, **constants,
    )  # fmt: skip
    gradients = []
    if to_x or to_y:
        planes *= len(maps)
        spread = sums[: len(maps)]  # what was in them has been used
        _plane_sums[_programs(height, planes * width)](maps, spread, planes, height, width, **constants)
    for wanted, own, other, place in ((to_x, 0, 1, 1), (to_y, 1, 0, 3 if to_x else 1)):
        found = torch.empty_like(x) if wanted else x.new_empty((0,))
        if wanted:
            _gradient[across](
                (x, y)[own], (x, y)[other], shifts[own], shifts[other], spread[0], spread[place], spread[place + 1],
                found, depth, height * width, **constants,
            )  # fmt: skip
        gradients.append(found)
    return values.sum(dim=1, dtype=torch.float64).to(x.dtype), *gradients
