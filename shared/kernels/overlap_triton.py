"""Sums for the Dice overlap of warped maps on CUDA in Triton, and their gradient to the fields, without warped maps.

The operators are those of ``overlap_cpu.cpp``: a bit for each of up to 64 channels says whether a cell of 8 voxels an
axis holds any of it. A program reads the bits of the cells that its positions meet, and then only the channels found.
Each program keeps sums of its own, which are added in one order: the bits are the same from call to call. With
``TRITON_INTERPRET=1``, set before this module is imported, the kernels run on CPU tensors.
"""

# Sizes and compile-time constants in Triton's own spelling.
# flake8: noqa: N803

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .warp_triton import _axis, _slope

__all__ = ["filled_cells", "warped_overlap", "warped_overlap_adjoint"]

BLOCK, WARPS = 256, 8  # a thread a position: with two, the weights take every register
TILE = 4096  # voxels whose cells are filled in one program
CELL, CHANNELS = 8, 64


@triton.jit
def _fill(
    maps, out, L, D, H, W, CELL: tl.constexpr, CHANNELS: tl.constexpr, VOXELS: tl.constexpr,
    CELLS: tl.constexpr,
):  # fmt: skip
    """Set a bit for each channel that a cell holds any of."""
    count_x, count_y, count_z = tl.cdiv(W, CELL), tl.cdiv(H, CELL), tl.cdiv(D, CELL)
    count, chunks = count_x * count_y * count_z, tl.cdiv(L, CHANNELS)
    blocks = tl.cdiv(count, CELLS)
    cell = tl.program_id(0) % blocks * CELLS + tl.arange(0, CELLS)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    voxel = tl.arange(0, VOXELS)
    x = (cell % count_x * CELL)[:, None] + (voxel % CELL)[None, :]
    y = ((cell // count_x) % count_y * CELL)[:, None] + (voxel // CELL % CELL)[None, :]
    z = (cell // (count_x * count_y) * CELL)[:, None] + (voxel // (CELL * CELL))[None, :]
    mask = (x < W) & (y < H) & (z < D)
    place = (z * H + y) * W + x
    found = tl.zeros([CELLS], tl.int64)
    for bit in range(tl.minimum(L - row % chunks * CHANNELS, CHANNELS)):
        channel = row // chunks * L + row % chunks * CHANNELS + bit
        some = tl.load(maps + channel * D * H * W + place, mask, 0.0) != 0  # NaN is something
        found |= tl.max(some.to(tl.int32), 1).to(tl.int64) << bit
    tl.store(out + row * count + cell, found, cell < count)


@triton.jit
def _either(a, b):
    return a | b


@triton.jit
def _look(
    field, at, mask, D, H, W, OH, OW, count, TYPE: tl.constexpr, DIMS: tl.constexpr, MOVES: tl.constexpr,
    CELL: tl.constexpr,
):  # fmt: skip
    """Return where positions lie: their lower corner, its cell, the steps to the next cells, and x, y, z above it."""
    x, y, z = (at % OW).to(TYPE), ((at // OW) % OH).to(TYPE), (at // (OW * OH)).to(TYPE)
    if MOVES:
        x += tl.load(field + (DIMS - 1) * count + at, mask, 0.0)
        y += tl.load(field + (DIMS - 2) * count + at, mask, 0.0)
    x0, x_above, _, _ = _axis(x, W, False, False)
    y0, y_above, _, _ = _axis(y, H, False, False)
    row, rows = tl.cdiv(W, CELL), tl.cdiv(H, CELL)
    corner = y0.to(tl.int64) * W + x0
    cell = y0 // CELL * row + x0 // CELL
    step_x, step_y = (x0 + 1) // CELL - x0 // CELL, ((y0 + 1) // CELL - y0 // CELL) * row
    step_z, z_above = step_x, x_above
    if DIMS == 3:
        if MOVES:
            z += tl.load(field + at, mask, 0.0)
        z0, z_above, _, _ = _axis(z, D, False, False)
        corner += z0.to(tl.int64) * (H * W)
        cell += z0 // CELL * (row * rows)
        step_z = ((z0 + 1) // CELL - z0 // CELL) * (row * rows)
    return corner, cell, step_x, step_y, step_z, x_above, y_above, z_above


@triton.jit
def _channels(filled, cell, step_x, step_y, step_z, mask, DIMS: tl.constexpr):
    """Return a bit for every channel of a chunk that the eight voxels about each position may hold."""
    found = tl.load(filled + cell, mask, 0)
    for bits in tl.static_range(1, 1 << DIMS):
        step = (bits & 1) * step_x + ((bits >> 1) & 1) * step_y + ((bits >> 2) & 1) * step_z
        found |= tl.load(filled + cell + step, mask, 0)
    return found


@triton.jit
def _value(
    plane, at, corner, x, y, z, mask, H, W, DIMS: tl.constexpr, MOVES: tl.constexpr, SLOPES: tl.constexpr,
):  # fmt: skip
    """Return a map at positions above their corners, 0 outside, and its slopes along x, y and z."""
    total = x * 0.0
    along_x, along_y, along_z = total, total, total
    if MOVES:
        for bits in tl.static_range(1 << (DIMS - 1)):
            line = plane + corner + (bits >> 1) * (H * W) + (bits & 1) * W
            first, second = tl.load(line, mask, 0.0), tl.load(line + 1, mask, 0.0)
            in_line = first * tl.maximum(1 - tl.abs(x), 0) + second * tl.maximum(1 - tl.abs(x - 1), 0)
            y_above, z_above = y - (bits & 1), z - (bits >> 1)
            across_y = tl.maximum(1 - tl.abs(y_above), 0)
            across_z = tl.maximum(1 - tl.abs(z_above), 0) if DIMS == 3 else x * 0.0 + 1
            total += across_z * across_y * in_line
            if SLOPES:
                along_x += across_z * across_y * (first * _slope(x) + second * _slope(x - 1))
                along_y += across_z * _slope(y_above) * in_line
                along_z += _slope(z_above) * across_y * in_line
    else:
        total += tl.load(plane + at, mask, 0.0)
    return total, along_x, along_y, along_z


@triton.jit
def _overlap(
    p, p_field, p_filled, q, q_field, q_filled, slopes, out, to_p, to_q, L, PD, PH, PW, QD, QH, QW, OH, OW, count,
    p_cells, q_cells, DIMS: tl.constexpr, P_MOVES: tl.constexpr, Q_MOVES: tl.constexpr, ADJOINT: tl.constexpr,
    CELL: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store a program's sums of pq and of p^2 + q^2 for every channel it meets, or the gradient to both fields."""
    n = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    dtype: tl.constexpr = p.dtype.element_ty
    own, out = n * DIMS * count, out + (n * tl.num_programs(0) + tl.program_id(0)) * L * 2
    pc, pe, pi, pj, pk, px, py, pz = _look(
        p_field + own, at, mask, PD, PH, PW, OH, OW, count, dtype, DIMS, P_MOVES, CELL
    )
    qc, qe, qi, qj, qk, qx, qy, qz = _look(
        q_field + own, at, mask, QD, QH, QW, OH, OW, count, dtype, DIMS, Q_MOVES, CELL
    )
    p_x, q_x = tl.zeros([BLOCK], dtype), tl.zeros([BLOCK], dtype)
    p_y, p_z, q_y, q_z = p_x, p_x, q_x, q_x
    chunks = tl.cdiv(L, CHANNELS)
    for chunk in range(chunks):
        in_p = _channels(p_filled + (n * chunks + chunk) * p_cells, pe, pi, pj, pk, mask, DIMS)
        in_q = _channels(q_filled + (n * chunks + chunk) * q_cells, qe, qi, qj, qk, mask, DIMS)
        found = tl.reduce(in_p | in_q, 0, _either)
        for bit in range(tl.minimum(L - chunk * CHANNELS, CHANNELS)):
            if (found >> bit) & 1 != 0:
                c = chunk * CHANNELS + bit
                p_map, q_map = p + (n * L + c) * (PD * PH * PW), q + (n * L + c) * (QD * QH * QW)
                with_p, with_q = (in_p >> bit) & 1 != 0, (in_q >> bit) & 1 != 0
                a, ax, ay, az = _value(p_map, at, pc, px, py, pz, with_p, PH, PW, DIMS, P_MOVES, ADJOINT)
                b, bx, by, bz = _value(q_map, at, qc, qx, qy, qz, with_q, QH, QW, DIMS, Q_MOVES, ADJOINT)
                if ADJOINT:
                    cross = tl.load(slopes + (n * L + c) * 2)
                    square = 2 * tl.load(slopes + (n * L + c) * 2 + 1)
                    on_a, on_b = cross * b + square * a, cross * a + square * b
                    p_x, p_y, p_z = p_x + on_a * ax, p_y + on_a * ay, p_z + on_a * az
                    q_x, q_y, q_z = q_x + on_b * bx, q_y + on_b * by, q_z + on_b * bz
                else:
                    tl.store(out + 2 * c, tl.sum(a * b, 0))
                    tl.store(out + 2 * c + 1, tl.sum(a * a + b * b, 0))
    if ADJOINT and P_MOVES:
        _store(to_p + own + at, p_x, p_y, p_z, mask, count, DIMS)
    if ADJOINT and Q_MOVES:
        _store(to_q + own + at, q_x, q_y, q_z, mask, count, DIMS)


@triton.jit
def _store(to, x, y, z, mask, count, DIMS: tl.constexpr):
    tl.store(to + (DIMS - 1) * count, x, mask)
    tl.store(to + (DIMS - 2) * count, y, mask)
    if DIMS == 3:
        tl.store(to, z, mask)


def _planes(maps: Tensor) -> tuple[int, ...]:
    """Return D, H and W; a 2D map is one plane."""
    return tuple(maps.shape[2:]) if maps.ndim == 5 else (1, *maps.shape[2:])


def filled_cells(maps: Tensor) -> Tensor:
    """Return (B, L / 64, *cells) for maps (B, L, *S), contiguous: a bit for each channel, 64 channels a number."""
    cells = [triton.cdiv(n, CELL) for n in maps.shape[2:]]
    filled = maps.new_empty((len(maps), triton.cdiv(maps.shape[1], CHANNELS), *cells), dtype=torch.int64)
    rows, count = filled.shape[0] * filled.shape[1], filled[0, 0].numel()
    voxels = CELL ** len(cells)
    _fill[(rows * triton.cdiv(count, TILE // voxels),)](
        maps, filled, maps.shape[1], *_planes(maps),
        CELL=CELL, CHANNELS=CHANNELS, VOXELS=voxels, CELLS=TILE // voxels, num_warps=WARPS,
    )  # fmt: skip
    return filled


def _run(sources: tuple[Tensor, ...], slopes: Tensor, out: Tensor, to_p: Tensor, to_q: Tensor, adjoint: bool) -> None:
    p, p_field, p_filled, q, q_field, q_filled = sources
    grid = next((field for field in (p_field, q_field) if field.numel() > 0), q).shape[2:]
    _overlap[(triton.cdiv(grid.numel(), BLOCK), len(p))](
        *sources, slopes, out, to_p, to_q, p.shape[1], *_planes(p), *_planes(q), *grid[-2:], grid.numel(),
        p_filled[0, 0].numel(), q_filled[0, 0].numel(), DIMS=len(grid), P_MOVES=p_field.numel() > 0,
        Q_MOVES=q_field.numel() > 0, ADJOINT=adjoint, CELL=CELL, CHANNELS=CHANNELS, BLOCK=BLOCK,
        num_warps=WARPS,
    )  # fmt: skip


def warped_overlap(
    p: Tensor, p_field: Tensor, p_filled: Tensor, q: Tensor, q_field: Tensor, q_filled: Tensor
) -> Tensor:
    """Return (B, L, 2), the sums of products and of both squares, of maps pulled back by fields.

    Args:
        p: (B, L, *S), contiguous, float32 or float64, every axis at least 2 long.
        p_field: (B, d, *T) in voxels, contiguous, of the maps' type; empty for maps as they are.
        p_filled: what :func:`filled_cells` returns for ``p``.
        q: as ``p``.
        q_field: as ``p_field``.
        q_filled: as ``p_filled``.
    """
    count = next((field for field in (p_field, q_field) if field.numel() > 0), q).shape[2:].numel()
    sums = p.new_zeros((len(p), triton.cdiv(count, BLOCK), p.shape[1], 2))
    _run((p, p_field, p_filled, q, q_field, q_filled), sums, sums, sums, sums, False)
    return sums.sum(dim=1, dtype=torch.float64).to(p.dtype)


def warped_overlap_adjoint(
    grad: Tensor, p: Tensor, p_field: Tensor, p_filled: Tensor, q: Tensor, q_field: Tensor, q_filled: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients to both fields, from ``grad`` (B, L, 2), contiguous; see :func:`warped_overlap`."""
    to_p, to_q = torch.empty_like(p_field), torch.empty_like(q_field)
    _run((p, p_field, p_filled, q, q_field, q_filled), grad, grad, to_p, to_q, True)
    return to_p, to_q
