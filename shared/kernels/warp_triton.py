"""Warping on CUDA: identity + displacement + linear or nearest sampling in one Triton kernel, and its two adjoints.

The arithmetic is that of ``warp_cpu.cpp``: along an axis a position p meets two corners, b and b + 1 with
b = clamp(floor(p), 0, size - 2), by the weights of a tent, so that every corner lies inside the image and no load needs
a test. Images may be float16 or bfloat16; positions, weights and sums have the field's type, float32 or float64. With
``TRITON_INTERPRET=1``, set before this module is imported, the kernels run on CPU tensors.
"""

# Sizes and compile-time constants in Triton's own spelling.
# flake8: noqa: N803

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["field_adjoint", "image_adjoint", "sample"]

BLOCK = 256


@triton.jit
def _clamp(p, low, high):
    return tl.where(p > low, tl.where(p < high, p, high), low)  # NaN gives low


@triton.jit
def _axis(raw, size, NEAREST: tl.constexpr, BORDER: tl.constexpr):
    """Return the lower corner, the position above it, and the weights of both corners."""
    zero = raw * 0.0
    zero = tl.where(zero == 0, zero, 0.0)
    p = _clamp(raw, zero, zero + (size - 1)) if BORDER else _clamp(raw, zero - 2, zero + (size + 1))
    if NEAREST:  # halves go to the even side, as in ATen
        whole = tl.floor(p)
        up = (p - whole > 0.5) | ((p - whole == 0.5) & (whole - 2 * tl.floor(whole / 2) == 1))
        p = tl.where(up, whole + 1, whole)
    base = tl.floor(_clamp(p, zero, zero + (size - 2)))
    above = p - base
    low = 1 - tl.abs(above)
    high = 1 - tl.abs(above - 1)
    return base.to(tl.int32), above, tl.where(low > 0, low, zero), tl.where(high > 0, high, zero)


@triton.jit
def _slope(distance):
    """Return the derivative of a corner's tent, `distance` above the corner; at a kink that of the side above."""
    below = tl.where(distance >= -1, 1.0, 0.0)
    return tl.where(distance < 0, below, tl.where(distance < 1, -1.0, 0.0))


@triton.jit
def _moves(raw, size, BORDER: tl.constexpr):
    """Return 1 where the sampled position follows the displacement: not where border padding holds it."""
    moves = tl.where(raw == raw, 1.0, 0.0)
    if BORDER:
        moves = tl.where((raw > 0) & (raw < size - 1), 1.0, 0.0)
    return moves


@triton.jit
def _pick(low, high, BIT: tl.constexpr):
    picked = low
    if BIT:
        picked = high
    return picked


@triton.jit
def _sample(
    image, field, out, C, D, H, W, OH, OW, count, image_step, field_step,
    DIMS: tl.constexpr, NEAREST: tl.constexpr, BORDER: tl.constexpr, ADD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    u = field + n * field_step + at
    x0, _, xl, xh = _axis(at % OW + tl.load(u + (DIMS - 1) * count, mask, 0.0), W, NEAREST, BORDER)
    y0, _, yl, yh = _axis((at // OW) % OH + tl.load(u + (DIMS - 2) * count, mask, 0.0), H, NEAREST, BORDER)
    corner = y0.to(tl.int64) * W + x0
    zl, zh = xl, xl
    if DIMS == 3:
        z0, _, zl, zh = _axis(at // (OW * OH) + tl.load(u, mask, 0.0), D, NEAREST, BORDER)
        corner += z0.to(tl.int64) * (H * W)
    for c in range(C):
        place = image + n * image_step + c * (D * H * W) + corner
        total = xl * 0.0
        for bits in tl.static_range(1 << DIMS):
            weight = _pick(xl, xh, bits & 1) * _pick(yl, yh, (bits >> 1) & 1)
            if DIMS == 3:
                weight *= _pick(zl, zh, (bits >> 2) & 1)
            step = ((bits >> 2) & 1) * (H * W) + ((bits >> 1) & 1) * W + (bits & 1)
            total += weight * tl.load(place + step, mask, 0.0).to(weight.dtype)
        if ADD:
            total += tl.load(u + c * count, mask, 0.0)
        tl.store(out + (n * C + c) * count + at, total.to(out.dtype.element_ty), mask)


@triton.jit
def _field_adjoint(
    grad, image, field, out, C, D, H, W, OH, OW, count, image_step, field_step,
    DIMS: tl.constexpr, BORDER: tl.constexpr, ADD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    u = field + n * field_step + at
    raw_x = at % OW + tl.load(u + (DIMS - 1) * count, mask, 0.0)
    raw_y = (at // OW) % OH + tl.load(u + (DIMS - 2) * count, mask, 0.0)
    x0, x_above, xl, xh = _axis(raw_x, W, False, BORDER)
    y0, y_above, yl, yh = _axis(raw_y, H, False, BORDER)
    corner = y0.to(tl.int64) * W + x0
    raw_z, z_above, zl, zh = raw_x, x_above, xl, xl
    if DIMS == 3:
        raw_z = at // (OW * OH) + tl.load(u, mask, 0.0)
        z0, z_above, zl, zh = _axis(raw_z, D, False, BORDER)
        corner += z0.to(tl.int64) * (H * W)
    along_x, along_y, along_z = xl * 0.0, xl * 0.0, xl * 0.0
    for c in range(C):
        place = image + n * image_step + c * (D * H * W) + corner
        g = tl.load(grad + (n * C + c) * count + at, mask, 0.0).to(xl.dtype)
        for bits in tl.static_range(1 << DIMS):
            step = ((bits >> 2) & 1) * (H * W) + ((bits >> 1) & 1) * W + (bits & 1)
            value = g * tl.load(place + step, mask, 0.0).to(xl.dtype)
            wx, wy = _pick(xl, xh, bits & 1), _pick(yl, yh, (bits >> 1) & 1)
            sx, sy = _slope(x_above - (bits & 1)), _slope(y_above - ((bits >> 1) & 1))
            if DIMS == 3:
                wz = _pick(zl, zh, (bits >> 2) & 1)
                along_z += value * wx * wy * _slope(z_above - ((bits >> 2) & 1))
                value *= wz
            along_x += value * sx * wy
            along_y += value * wx * sy
    along_x *= _moves(raw_x, W, BORDER)
    along_y *= _moves(raw_y, H, BORDER)
    along_z *= _moves(raw_z, D, BORDER)
    target, own = out + n * DIMS * count + at, grad + n * DIMS * count + at
    if ADD:
        along_x += tl.load(own + (DIMS - 1) * count, mask, 0.0).to(xl.dtype)
        along_y += tl.load(own + (DIMS - 2) * count, mask, 0.0).to(xl.dtype)
    tl.store(target + (DIMS - 1) * count, along_x, mask)
    tl.store(target + (DIMS - 2) * count, along_y, mask)
    if DIMS == 3:
        if ADD:
            along_z += tl.load(own, mask, 0.0).to(xl.dtype)
        tl.store(target, along_z, mask)


@triton.jit
def _image_adjoint(
    grad, field, out, C, D, H, W, OH, OW, count, image_step, field_step,
    DIMS: tl.constexpr, NEAREST: tl.constexpr, BORDER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    u = field + n * field_step + at
    x0, _, xl, xh = _axis(at % OW + tl.load(u + (DIMS - 1) * count, mask, 0.0), W, NEAREST, BORDER)
    y0, _, yl, yh = _axis((at // OW) % OH + tl.load(u + (DIMS - 2) * count, mask, 0.0), H, NEAREST, BORDER)
    corner = y0.to(tl.int64) * W + x0
    zl, zh = xl, xl
    if DIMS == 3:
        z0, _, zl, zh = _axis(at // (OW * OH) + tl.load(u, mask, 0.0), D, NEAREST, BORDER)
        corner += z0.to(tl.int64) * (H * W)
    for c in range(C):
        place = out + n * image_step + c * (D * H * W) + corner
        g = tl.load(grad + (n * C + c) * count + at, mask, 0.0).to(xl.dtype)
        for bits in tl.static_range(1 << DIMS):
            share = g * _pick(xl, xh, bits & 1) * _pick(yl, yh, (bits >> 1) & 1)
            if DIMS == 3:
                share *= _pick(zl, zh, (bits >> 2) & 1)
            step = ((bits >> 2) & 1) * (H * W) + ((bits >> 1) & 1) * W + (bits & 1)
            tl.atomic_add(place + step, share, mask & (share != 0))


def _sizes(image_size: tuple[int, ...], field: Tensor) -> tuple[int, ...]:
    """Return D, H, W of the image and H, W, count of the output; a 2D image is one plane."""
    planes = image_size if len(image_size) == 3 else (1, *image_size)
    return (*planes, *field.shape[-2:], field.shape[2:].numel())


def _steps(image_size: torch.Size, field: Tensor) -> tuple[int, int]:
    """Return how far the next image and the next field of a batch lie: 0 where one serves all."""
    return (0 if image_size[0] == 1 else image_size[1:].numel(), 0 if field.shape[0] == 1 else field.shape[1:].numel())


def _grid(count: int, batch: int) -> tuple[int, int]:
    return triton.cdiv(count, BLOCK), batch


def sample(image: Tensor, field: Tensor, nearest: bool, border: bool, add: bool, out: Tensor | None = None) -> Tensor:
    """Return ``image`` at the field, and the field added to it where ``add``.

    Args:
        image: (N or 1, C, *S), contiguous, every axis at least 2 long.
        field: (N or 1, d, *T) in voxels, contiguous, float32 or float64.
        nearest: instead of linear.
        border: repeat the edge; else zeros.
        add: needs C = d.
        out: where to write, contiguous; new memory if None.

    Returns:
        (N, C, *T) of the image's type.
    """
    batch, dims = max(image.shape[0], field.shape[0]), field.shape[1]
    if out is None:
        out = image.new_empty((batch, image.shape[1], *field.shape[2:]))
    sizes = _sizes(tuple(image.shape[2:]), field)
    _sample[_grid(sizes[-1], batch)](
        image, field, out, image.shape[1], *sizes, *_steps(image.shape, field),
        DIMS=dims, NEAREST=nearest, BORDER=border, ADD=add, BLOCK=BLOCK,
    )  # fmt: skip
    return out


def field_adjoint(grad: Tensor, image: Tensor, field: Tensor, border: bool, add: bool = False) -> Tensor:
    """Return the gradient to ``field`` of linear sampling, plus ``grad`` where ``add``; see :func:`sample`."""
    batch, dims = max(image.shape[0], field.shape[0]), field.shape[1]
    out = field.new_empty((batch, *field.shape[1:]))
    sizes = _sizes(tuple(image.shape[2:]), field)
    _field_adjoint[_grid(sizes[-1], batch)](
        grad, image, field, out, image.shape[1], *sizes, *_steps(image.shape, field),
        DIMS=dims, BORDER=border, ADD=add, BLOCK=BLOCK,
    )  # fmt: skip
    return out if field.shape[0] == batch else out.sum(0, keepdim=True)


def image_adjoint(
    grad: Tensor, image: Tensor, field: Tensor, nearest: bool, border: bool, out: Tensor | None = None
) -> Tensor:
    """Return the gradient to ``image``, added to ``out`` if given; see :func:`sample`. Sums have the field's type.

    The order of the sums is the hardware's, so the last bits differ from call to call on CUDA.
    """
    batch, dims = max(image.shape[0], field.shape[0]), field.shape[1]
    if out is None:
        out = torch.zeros(image.shape, dtype=field.dtype, device=image.device)
    sizes = _sizes(tuple(image.shape[2:]), field)
    _image_adjoint[_grid(sizes[-1], batch)](
        grad, field, out, image.shape[1], *sizes, *_steps(image.shape, field),
        DIMS=dims, NEAREST=nearest, BORDER=border, BLOCK=BLOCK,
    )  # fmt: skip
    return out.to(image.dtype)
