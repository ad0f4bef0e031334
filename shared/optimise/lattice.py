"""Lattices of the levels, and images and fields placed on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..transform_io import Grid, affine_ddf
from ..warp import warp

__all__ = ["carry", "coarser", "padded", "place", "reach", "thinned"]

# A lattice counts as parallel to another where no voxel is farther off than this, in voxels.
PARALLEL = 0.01
# Sigma of an image on its lattice, in voxels: less and local similarities follow noise, more and edges fade.
BLUR = 0.5


def coarser(grid: Grid, spacing_mm: float) -> Grid:
    """Return the lattice with the same axes and centre whose voxels are ``spacing_mm`` long, or as long as they were.

    An axis whose voxels are longer already is not touched, so thick slices are never halved.
    """
    own = np.array(grid.spacing_mm)
    factor = np.maximum(1.0, spacing_mm / own)
    size = np.array(grid.shape)
    shape = np.maximum(1, np.ceil(size / factor - 1e-6)).astype(int)
    affine = grid.affine.copy()
    affine[:-1, :-1] = grid.affine[:-1, :-1] * factor
    centre = grid.affine[:-1, :-1] @ ((size - 1) / 2) + grid.affine[:-1, -1]
    affine[:-1, -1] = centre - affine[:-1, :-1] @ ((shape - 1) / 2)
    return Grid(tuple(int(n) for n in shape), affine)


def padded(grid: Grid, margin: Sequence[int]) -> Grid:
    """Return the lattice with ``margin`` more voxels at either end of each axis."""
    affine = grid.affine.copy()
    affine[:-1, -1] -= affine[:-1, :-1] @ np.array(margin, dtype=float)
    return Grid(tuple(n + 2 * m for n, m in zip(grid.shape, margin, strict=True)), affine)


def thinned(image: Tensor, grid: Grid, spacing_mm: float) -> tuple[Tensor, Grid]:
    """Return an image (1, C, *S) blurred by half a voxel of ``coarser(grid, spacing_mm)`` on that lattice, and that."""
    target = coarser(grid, spacing_mm)
    return _separable(image, grid, target, list(range(len(grid.shape))), lambda step: BLUR * max(step, 1.0)), target


def place(image: Tensor, source: Grid, target: Grid, displaced: Tensor | None = None) -> Tensor:
    """Sample an image on another lattice, linearly, blurred first to half a voxel of the target.

    Args:
        image: (1, C, *source.shape) float, blurred by half a voxel already (`thinned`); its edge is repeated outside.
        source: lattice of the image.
        target: where to sample.
        displaced: (1, d, *target.shape), in voxels of ``target``: where to look instead of at the target's own voxels.

    Returns:
        (1, C, *target.shape).
    """
    axes = _parallel_axes(source, target)
    if axes is not None and displaced is None:
        return _separable(image, source, target, axes, _further_blur)
    # Blurred and thinned out along its own axes, then sampled where the target asks.
    own = coarser(source, min(target.spacing_mm))
    image = _separable(image, source, own, list(range(len(own.shape))), _further_blur)
    where = affine_ddf(target, own).to(image.device)
    if displaced is not None:
        where += _turn(own, target, displaced)
    return warp(image, where, padding_mode="border")


def reach(source: Grid, target: Grid, displaced: Tensor | None = None, device: torch.device | None = None) -> Tensor:
    """Return (1, 1, *target.shape): 1 where a lattice reaches, 0 farther than half a voxel outside it."""
    where = affine_ddf(target, source).to(device)
    if displaced is not None:
        where += _turn(source, target, displaced)
    inside = torch.ones(1, 1, *target.shape, dtype=torch.bool, device=device)
    d = len(target.shape)
    for axis, (n, m) in enumerate(zip(target.shape, source.shape, strict=True)):
        position = where[:, axis : axis + 1] + torch.arange(n, device=device).view([-1] + [1] * (d - 1 - axis))
        inside &= (position >= -0.5) & (position <= m - 0.5)
    return inside.float()


def carry(ddf: Tensor, source: Grid, target: Grid) -> Tensor:
    """Resample a field (1, d, *source.shape) to a lattice with the same axes; vectors in voxels of the target."""
    field = _separable(ddf, source, target, list(range(len(source.shape))), lambda _: 0.0)
    scale = [s / t for s, t in zip(source.spacing_mm, target.spacing_mm, strict=True)]
    for component, factor in zip(field.unbind(1), scale, strict=True):
        component.mul_(factor)
    return field


def _turn(to: Grid, frm: Grid, field: Tensor) -> Tensor:
    """Express vectors in voxels of ``frm`` in voxels of ``to``."""
    d = field.shape[1]
    matrix = (np.linalg.inv(to.affine) @ frm.affine)[:d, :d]
    return torch.einsum("ij,bj...->bi...", torch.as_tensor(matrix).to(field), field)


def _parallel_axes(source: Grid, target: Grid) -> list[int] | None:
    """Return for each axis of ``target`` the axis of ``source`` that runs along it; None where axes are oblique."""
    d = len(target.shape)
    slope = (np.linalg.inv(source.affine) @ target.affine)[:d, :d]
    along = np.abs(slope).argmax(axis=0)
    if sorted(along.tolist()) != list(range(d)):
        return None
    rest = np.abs(slope)
    rest[along, range(d)] = 0
    return along.tolist() if (rest @ np.array(target.shape)).max() < PARALLEL else None


def _further_blur(step: float) -> float:
    return BLUR * max(step * step - 1.0, 0.0) ** 0.5


def _separable(
    image: Tensor, source: Grid, target: Grid, axes: list[int], sigma_of: Callable[[float], float]
) -> Tensor:
    """Resample along one axis after the other by matrix products.

    ``axes`` is as from `_parallel_axes`; ``sigma_of`` gives the blur in source voxels by the length of a target voxel.
    """
    d = len(target.shape)
    mapping = np.linalg.inv(source.affine) @ target.affine
    image = image.permute(0, 1, *[2 + a for a in axes])
    # Axes that shrink most go first.
    for axis in sorted(range(d), key=lambda a: target.shape[a] / source.shape[axes[a]]):
        step, start = mapping[axes[axis], axis], mapping[axes[axis], d]
        weights = _axis_weights(source.shape[axes[axis]], target.shape[axis], start, step, sigma_of(abs(step)))
        if weights is not None:
            image = _along(torch.from_numpy(weights).to(image), image, axis)
    return image.contiguous()


def _along(weights: Tensor, image: Tensor, axis: int) -> Tensor:
    """Multiply ``weights`` (m, n) into axis ``axis`` of ``image`` (1, C, *S)."""
    shape = image.shape
    if axis == image.ndim - 3:
        return image @ weights.T
    flat = image.reshape(*shape[: axis + 3], -1)
    return (weights @ flat).reshape(*shape[: axis + 2], weights.shape[0], *shape[axis + 3 :])


def _axis_weights(n: int, m: int, start: float, step: float, sigma: float) -> np.ndarray | None:
    """Weights (m, n) of the ``n`` voxels of an axis at positions ``start + step * i``; None where they are the same."""
    position = start + step * np.arange(m)
    same = n == m and np.abs(position - np.arange(n)).max() < 1e-4
    blurred = sigma > 0.05 and n > 1
    if same and not blurred:
        return None
    position = position.clip(0, n - 1)
    low = np.minimum(np.floor(position).astype(int), max(n - 2, 0))
    weights = np.zeros((m, n), np.float32)
    weights[np.arange(m), low] = 1 - (position - low)
    if n > 1:
        weights[np.arange(m), low + 1] += position - low
    return weights @ _gaussian_matrix(n, sigma) if blurred else weights


def _gaussian_matrix(n: int, sigma: float) -> np.ndarray:
    """Gaussian along an axis of ``n`` voxels as a matrix, the edge repeated."""
    radius = int(np.ceil(3 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    matrix = np.zeros((n, n), np.float32)
    for offset, weight in zip(range(-radius, radius + 1), kernel / kernel.sum(), strict=True):
        np.add.at(matrix, (np.arange(n), (np.arange(n) + offset).clip(0, n - 1)), weight)
    return matrix
