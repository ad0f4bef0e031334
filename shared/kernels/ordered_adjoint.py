"""The gradient of a warp to the image with a fixed order of sums: slower, alike in every bit from call to call."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

__all__ = ["ordered_image_adjoint"]


def ordered_image_adjoint(grad: Tensor, image: Tensor, field: Tensor, nearest: bool, border: bool) -> Tensor:
    """Return the gradient to ``image`` (N or 1, C, *S) for ``field`` (N or 1, d, *T) and ``grad`` (N, C, *T).

    For ``torch.use_deterministic_algorithms``: the sums are those of ``index_put_``, which sorts on CUDA.
    """
    size, batch, channels = image.shape[2:], grad.shape[0], image.shape[1]
    corners = [_axis(field, axis, n, nearest, border) for axis, n in enumerate(size)]
    out = torch.zeros(image.shape[0], channels, size.numel(), dtype=field.dtype, device=image.device)
    rows = torch.arange(batch, device=image.device).view(-1, 1, 1) * (image.shape[0] > 1)
    planes = torch.arange(channels, device=image.device).view(1, -1, 1)
    flat = grad.flatten(2).to(field.dtype)
    for sides in product((0, 1), repeat=len(size)):
        index = torch.zeros_like(corners[0][0])
        weight = torch.ones_like(corners[0][1])
        for (base, low, high), side, n in zip(corners, sides, size, strict=True):
            index = index * n + base + side
            weight = weight * (high if side else low)
        index, weight = (tensor.flatten(1).unsqueeze(1).expand(batch, 1, -1) for tensor in (index, weight))
        out.index_put_((rows, planes, index), flat * weight, accumulate=True)
    return out.view(image.shape).to(image.dtype)


def _axis(field: Tensor, axis: int, n: int, nearest: bool, border: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the lower corner along an axis and the weights of both, as ``warp_cpu.cpp`` has them."""
    start = torch.arange(field.shape[2 + axis], dtype=field.dtype, device=field.device)
    position = torch.nan_to_num(start.view(-1, *[1] * (field.ndim - 3 - axis)) + field[:, axis], nan=-2.0)
    position = position.clamp(0, n - 1) if border else position.clamp(-2, n + 1)
    if nearest:
        position = position.round()
    base = position.clamp(0, n - 2).floor()
    weights = [(1 - (position - base - side).abs()).clamp_min(0) for side in (0, 1)]
    return base.long(), weights[0], weights[1]
