"""Sums for the Dice overlap of warped maps, without the warped maps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..warp import compiled_takes, warp

__all__ = ["warped_sums"]


def warped_sums(p: Tensor, p_ddf: Tensor | None, q: Tensor, q_ddf: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return ``sum(pq)`` and ``sum(p^2) + sum(q^2)`` of maps pulled back by fields, zero outside.

    Where kernels serve, nothing of the maps' size is made, neither here nor for the gradient, and voxels
    that hold none of a label cost nothing. Elsewhere both maps are warped.

    Args:
        p: (B, L, *S), without gradient where the kernels are to serve.
        p_ddf: (B, d, *T) in voxels, or None for the maps as they are.
        q: (B, L, *S).
        q_ddf: as ``p_ddf``.

    Returns:
        Two tensors (B, L), differentiable with respect to the fields.

    Raises:
        ValueError: when the warped maps differ in shape.
    """
    if _kernels_take(p, p_ddf) and _kernels_take(q, q_ddf) and p.shape[:2] == q.shape[:2] and p.dtype == q.dtype:
        grids = [(maps if ddf is None else ddf).shape[2:] for maps, ddf in ((p, p_ddf), (q, q_ddf))]
        if grids[0] == grids[1]:
            still = p.new_empty((0,))
            fields = [still if ddf is None else ddf.contiguous() for ddf in (p_ddf, q_ddf)]
            sums = _WarpedOverlap.apply(p.contiguous(), fields[0], q.contiguous(), fields[1])
            return sums[..., 0], sums[..., 1]
    p = p if p_ddf is None else warp(p, p_ddf)
    q = q if q_ddf is None else warp(q, q_ddf)
    if p.shape != q.shape or p.ndim < 3:
        raise ValueError(f"p and q must have one shape (B, L, *S), got {tuple(p.shape)} and {tuple(q.shape)}")
    dims = tuple(range(2, p.ndim))
    return (p * q).sum(dim=dims), p.square().sum(dim=dims) + q.square().sum(dim=dims)


def _kernels_take(maps: Tensor, ddf: Tensor | None) -> bool:
    field = maps if ddf is None else ddf
    return (
        not maps.requires_grad
        and maps.dtype in (torch.float32, torch.float64)
        and maps.ndim in (4, 5)
        and field.dtype == maps.dtype
        and (ddf is None or ddf.shape[:2] == (maps.shape[0], maps.ndim - 2))
        and compiled_takes(maps, field)
    )


class _WarpedOverlap(torch.autograd.Function):
    """Both sums (B, L, 2) of maps and fields, each contiguous; an empty field stands for none."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, p_field: Tensor, q: Tensor, q_field: Tensor) -> Tensor:
        ops = torch.ops.registration
        sources = (p, p_field, ops.filled_cells(p), q, q_field, ops.filled_cells(q))
        ctx.save_for_backward(*sources)
        sums: Tensor = ops.warped_overlap(*sources)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        to_p, to_q = torch.ops.registration.warped_overlap_adjoint(grad.contiguous(), *ctx.saved_tensors)
        return None, to_p if ctx.needs_input_grad[1] else None, None, to_q if ctx.needs_input_grad[3] else None
