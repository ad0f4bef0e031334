"""Scaling and squaring on CUDA: each step one Triton kernel, each step of the adjoint two."""

from __future__ import annotations

import torch
from torch import Tensor

from .ordered_adjoint import ordered_image_adjoint
from .warp_triton import field_adjoint, image_adjoint, sample

__all__ = ["integrate", "integrate_adjoint"]


def integrate(dvf: Tensor, steps: int, keep: bool) -> tuple[Tensor, Tensor]:
    """Return ``u <- u + u(x + u)``, ``steps`` times from ``dvf / 2^steps``, edges repeated outside.

    Args:
        dvf: (B, d, *S) in voxels, contiguous, float32 or float64, every axis at least 2 long.
        steps: 1 or more.
        keep: the fields before each step as well, for the adjoint.

    Returns:
        (B, d, *S), and (steps, B * d * voxels) or an empty tensor.
    """
    states = dvf.new_empty((steps if keep else 0, dvf.numel()))
    field = torch.mul(dvf, 0.5**steps, out=states[0].view_as(dvf) if keep else None)
    for step in range(1, steps + 1):
        target = states[step].view_as(dvf) if keep and step < steps else None
        field = sample(field, field, nearest=False, border=True, add=True, out=target)
    return field, states if keep else dvf.new_empty((0,))


def integrate_adjoint(grad: Tensor, dvf: Tensor, states: Tensor, steps: int) -> Tensor:
    """Return the gradient to ``dvf``; ``states`` are found again where they were not kept. See :func:`integrate`."""
    if states.numel() == 0:
        states = integrate(dvf, steps, True)[1]
    for state in reversed(states.unbind()):
        field = state.view_as(dvf)
        onward = field_adjoint(grad, field, field, border=True, add=True)
        if dvf.is_cuda and torch.are_deterministic_algorithms_enabled():
            onward += ordered_image_adjoint(grad, field, field, nearest=False, border=True)
        else:
            image_adjoint(grad, field, field, nearest=False, border=True, out=onward)
        grad = onward
    return grad * 0.5**steps
