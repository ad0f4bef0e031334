"""The voxels of a lattice on their way through a chain: one displacement each in float32, the rest in one matrix.

A map of all voxels of a lattice costs a few passes of the warping kernels so; points one by one, in float64, cost
several times as much (:meth:`shared.transform_io.Transform.move`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch
from torch import Tensor

from ..warp import warp
from .grid import Grid, affine_ddf, turn

__all__ = ["Placed", "held", "slabs"]

# Voxels at once: what is done with them stays in the processor's cache.
_AT_ONCE = 300_000


@dataclass(frozen=True, eq=False)
class Placed:
    """Voxel x of a lattice, being at ``matrix @ (x + ddf(x))`` in RAS millimetres.

    Attributes:
        shape: of the lattice.
        matrix: (d+1, d+1).
        ddf: (1, d, *shape) float32; None is no displacement.
    """

    shape: tuple[int, ...]
    matrix: np.ndarray
    ddf: Tensor | None = None

    def then(self, matrix: np.ndarray) -> Placed:
        """Return the voxels after a linear map of the world."""
        return replace(self, matrix=matrix @ self.matrix)

    def moved(self, step: Tensor) -> Placed:
        """Return the voxels after displacements (1, d, *shape) in voxels of the lattice."""
        return replace(self, ddf=step if self.ddf is None else self.ddf + step)

    def seen_from(self, grid: Grid) -> Tensor:
        """Return (1, d, *shape): voxel x lies at voxel ``x`` + this of ``grid``."""
        where = affine_ddf(Grid(self.shape, self.matrix), grid)
        return where if self.ddf is None else where.add_(turn(np.linalg.inv(grid.affine) @ self.matrix, self.ddf))

    def displaced(self, ddf: Tensor, grid: Grid) -> Placed:
        """Return the voxels moved by a field (1, d, *grid.shape) in voxels of its grid; outside it nothing moves."""
        where = self.seen_from(grid)
        step = warp(ddf.float(), where, padding_mode="border")
        return self.moved(turn(np.linalg.inv(self.matrix) @ grid.affine, step).mul_(held(where, grid)))


def held(where: Tensor, grid: Grid) -> Tensor:
    """Tell which voxels x of a lattice (1, d, *S) lie within the outer voxel edges at x + ``where`` -> (1, 1, *S)."""
    inside = torch.ones(1, 1, *where.shape[2:], dtype=torch.bool)
    for axis, (n, wide) in enumerate(zip(where.shape[2:], grid.shape, strict=True)):
        ramp = torch.arange(n, dtype=where.dtype).reshape([-1] + [1] * (where.ndim - 3 - axis))
        place = where[:, axis : axis + 1] + ramp
        inside &= (place >= -0.5) & (place <= wide - 0.5)
    return inside


def slabs(grid: Grid) -> Iterator[tuple[slice, Placed]]:
    """Yield rows of a grid's first axis and their voxels where they are, some at a time."""
    rows = max(1, _AT_ONCE // prod(grid.shape[1:]))
    for start in range(0, grid.shape[0], rows):
        stop = min(start + rows, grid.shape[0])
        matrix = grid.affine.copy()
        matrix[:-1, -1] += start * matrix[:-1, 0]
        yield slice(start, stop), Placed((stop - start, *grid.shape[1:]), matrix)
