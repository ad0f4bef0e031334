"""What a pair takes in memory, and how coarse its fields must be to fit."""

from __future__ import annotations

from dataclasses import replace
from math import ceil, prod

import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..free_memory import free_bytes
from ..transform_io import Grid
from .inputs import Pair, Side

__all__ = ["check_memory", "thin_grid", "thinned"]

# Bytes a voxel of either image while it is read and warped, more where it has a label map, and a voxel of the larger
# field while it is written; and what everything else takes (measured).
_IMAGE, _LABEL, _FIELD, _BASE = 16, 12, 100, 1.0e9
_COARSEST = 8


def check_memory(pair: Pair, memory_gb: float | None = None) -> tuple[int, str]:
    """Return k, so that fields on every k-th voxel along each axis fit, and a message where that is not 1.

    Args:
        pair: both images.
        memory_gb: what the work may take; None is what the machine has free.

    Raises:
        InputError: the images alone are too large.
    """
    sizes = [prod(side.grid.shape) for side in (pair.fixed, pair.moving)]
    labelled = sum(prod(side.grid.shape) for side in (pair.fixed, pair.moving) if side.label is not None)
    free = memory_gb * 1e9 if memory_gb is not None else 0.9 * free_bytes()
    # A small pair works in less than the general part; whatever is free then has to do.
    base = min(_BASE, 300.0 * sum(sizes))

    def need(k: int) -> float:
        return base + _IMAGE * sum(sizes) + _LABEL * labelled + _FIELD * max(sizes) / k ** len(pair.fixed.grid.shape)

    found = next((k for k in range(1, _COARSEST + 1) if need(k) <= free), None)
    names = f"{pair.fixed.name} {pair.fixed.grid.shape}, {pair.moving.name} {pair.moving.grid.shape}"
    estimate = f"this pair takes about {need(1) / 1e9:.2g} GB, {free / 1e9:.2g} GB are free"
    if found is None:
        raise InputError(f"{names}: {estimate}; expected smaller images or more memory")
    if found == 1:
        return 1, ""
    return found, (
        f"{estimate}: the fields are found and kept on voxels {found} times as long as those of the images; "
        "warped images have their full size"
    )


def thin_grid(grid: Grid, k: int) -> Grid:
    """Return the lattice whose voxels are blocks of k along each axis, the last ones reaching over the edge."""
    d = len(grid.shape)
    affine = grid.affine.copy()
    affine[:d, :d] *= k
    affine[:d, d] += grid.affine[:d, :d].sum(1) * (k - 1) / 2
    return Grid(tuple(ceil(n / k) for n in grid.shape), affine)


def thinned(side: Side, k: int) -> Side:
    """Return an image, its mask and its label map on `thin_grid`: block means, any, and the middle."""
    if k == 1:
        return side

    def filled(volume: Tensor) -> Tensor:
        pads = [p for n in reversed(volume.shape[2:]) for p in (0, -n % k)]
        return F.pad(volume.float(), pads, mode="replicate")

    d = len(side.grid.shape)
    mean, most = (F.avg_pool2d, F.max_pool2d) if d == 2 else (F.avg_pool3d, F.max_pool3d)
    label = side.label
    if label is not None:
        middle = [[min(i * k + k // 2, n - 1) for i in range(ceil(n / k))] for n in label.shape]
        for axis, rows in enumerate(middle):
            label = label.take(rows, axis=axis)
    return replace(
        side,
        image=mean(filled(side.image), k),
        grid=thin_grid(side.grid, k),
        mask=most(filled(side.mask), k).to(side.mask.dtype) if side.mask is not None else None,
        label=label,
    )
