"""Maps from the world of the fixed to that of the moving image: affine, displacement on a grid, chains of both."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..fields import identity, invert, length
from ..warp import warp, warp_points
from .grid import Grid, affine_ddf, turn
from .placed import Placed, held, slabs

__all__ = ["Affine", "Displacement", "Transform"]

# Corrections of an inverse between its voxels; each takes off most of what is left.
_CORRECTIONS = 3
# Points that the inverse misses by less than this, in mm, are not corrected.
_CLOSE_MM = 1e-3
# A field that reaches further than this many times its own volume is not a registration: its inverse would fill memory.
_MOST_GROWTH = 16


@dataclass(frozen=True, eq=False)
class Affine:
    """``x -> M x`` in RAS millimetres; ``matrix`` is (d+1, d+1)."""

    matrix: np.ndarray

    @property
    def dims(self) -> int:
        """Number of spatial dimensions."""
        return len(self.matrix) - 1

    def move(self, world: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """Carry points (N, d) float64; ``dtype`` has no bearing here."""
        matrix = torch.as_tensor(self.matrix, dtype=torch.float64, device=world.device)
        return world @ matrix[:-1, :-1].T + matrix[:-1, -1]

    def place(self, voxels: Placed) -> Placed:
        """Carry the voxels of a lattice."""
        return voxels.then(self.matrix)

    def inverse(self) -> tuple[Affine, float]:
        """Return the exact inverse, and its residual: 0 mm.

        Raises:
            InputError: the matrix is singular.
        """
        try:
            return Affine(np.linalg.inv(self.matrix)), 0.0
        except np.linalg.LinAlgError:
            raise InputError(f"found a singular affine {self.matrix[:-1].tolist()}, expected one to invert") from None


@dataclass(frozen=True, eq=False)
class Displacement:
    """``x -> x + u(x)`` with ``u`` read linearly on a grid; outside the grid nothing moves, as in ITK.

    Args:
        grid: where the field lives.
        ddf: (1, d, *grid.shape) in voxels of that grid.
    """

    grid: Grid
    ddf: Tensor

    def __post_init__(self) -> None:
        if tuple(self.ddf.shape) != (1, self.dims, *self.grid.shape):
            raise ValueError(f"ddf must be (1, d, *{self.grid.shape}), got {tuple(self.ddf.shape)}")

    @property
    def dims(self) -> int:
        """Number of spatial dimensions."""
        return len(self.grid.shape)

    def move(self, world: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """Carry points (N, d) float64; the field is read in ``dtype``."""
        voxels = self.grid.to_voxels(world)
        start = voxels.to(dtype)
        step = (warp_points(start[None], self.ddf.to(dtype))[0] - start).double()
        step[~self.grid.holds(voxels)] = 0
        matrix = torch.as_tensor(self.grid.affine[:-1, :-1], dtype=torch.float64, device=world.device)
        return world + step @ matrix.T

    def place(self, voxels: Placed) -> Placed:
        """Carry the voxels of a lattice."""
        return voxels.displaced(self.ddf, self.grid)

    def inverse(self) -> tuple[Displacement, float]:
        """Invert by fixed-point iteration (:func:`shared.fields.invert`) on a grid that holds all that the map reaches.

        Returns:
            the inverse, and its residual: the largest ``|x + u(x) - y|`` in mm over the voxels y and the points halfway
            between them, as far as their inverse x lies in the field. A map that folds has no inverse, and a residual
            that tells.

        Raises:
            InputError: the field reaches absurdly far.
        """
        d, shape = self.dims, torch.tensor(self.grid.shape)
        reached = (identity(self.grid.shape, dtype=self.ddf.dtype) + self.ddf[0]).flatten(1)
        low = reached.amin(1).floor().sub(1).clamp(max=0)
        high = torch.maximum(reached.amax(1).ceil() + 1, shape - 1)
        if not bool(torch.isfinite(reached).all()) or (high - low + 1).prod() > _MOST_GROWTH * shape.prod():
            raise InputError(
                f"found displacements of up to {float(self.ddf.abs().max()):g} voxels on a grid of {self.grid.shape}, "
                "expected a field that an inverse exists for"
            )
        affine = self.grid.affine.copy()
        affine[:d, d] += affine[:d, :d] @ low.double().numpy()
        wide = Grid(tuple(int(n) for n in (high - low + 1)), affine)
        shift = low.to(self.ddf).reshape(1, d, *[1] * d).expand(1, d, *wide.shape)
        forward = warp(self.ddf, shift, padding_mode="border")
        inverse = InverseDisplacement(wide, invert(forward)[0], self)
        return inverse, max(self._off(inverse, part) for part in (0.0, 0.5))

    def _off(self, inverse: InverseDisplacement, part: float) -> float:
        """Return the largest error in mm of an inverse at its grid's voxels plus ``part`` of a voxel."""
        grid, worst = inverse.grid, 0.0
        affine = grid.affine.copy()
        affine[:-1, -1] += affine[:-1, :-1].sum(1) * part
        for _, voxels in slabs(Grid(grid.shape, affine)):
            back = inverse.place(voxels)
            missed = turn(voxels.matrix, self.place(back).ddf)
            inside = held(back.seen_from(self.grid), self.grid)
            worst = max(worst, float(length(missed).mul_(inside).max()))
        return worst


@dataclass(frozen=True, eq=False)
class InverseDisplacement(Displacement):
    """The inverse of a displacement: a field, and what it inverts, which sharpens it between its voxels.

    Args:
        grid: where the inverse field lives.
        ddf: the inverse at its voxels.
        forward: what is inverted.
    """

    forward: Displacement

    def move(self, world: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """Carry points (N, d) float64 with the error of the linearly read inverse taken out again.

        The point asked for is shifted by how far the forward map misses it (quasi-Newton, the inverse field standing
        for the inverse Jacobian), where the forward field is defined.
        """
        moved, target = super().move(world, dtype), world.clone()
        left = torch.arange(len(world), device=world.device)
        for _ in range(_CORRECTIONS):
            missed = world[left] - self.forward.move(moved[left], dtype)
            missed[~self.forward.grid.holds(self.forward.grid.to_voxels(moved[left]))] = 0
            far = torch.linalg.vector_norm(missed, dim=1) > _CLOSE_MM
            left = left[far]
            target[left] += missed[far]
            moved[left] = super().move(target[left], dtype)
        return moved

    def place(self, voxels: Placed) -> Placed:
        """Carry the voxels of a lattice, with the error taken out as in :meth:`move`."""
        # All in voxels of the inverse's grid, which are those of the forward field's, shifted by whole ones.
        d, start = self.dims, voxels.seen_from(self.grid)
        to_forward = np.linalg.inv(self.forward.grid.affine) @ self.grid.affine
        shift = torch.as_tensor(np.rint(to_forward[:d, d])).to(start).reshape(1, d, *[1] * d)
        inside, target = held(start, self.grid), start
        step = warp(self.ddf, start, padding_mode="border").mul_(inside)
        for _ in range(_CORRECTIONS):
            there = start + shift + step
            missed = (
                warp(self.forward.ddf, there, padding_mode="border").add_(step).mul_(held(there, self.forward.grid))
            )
            far = length(turn(self.grid.affine, missed)) > _CLOSE_MM
            if not bool(far.any()):
                break
            target = target - missed.mul_(far)
            step = warp(self.ddf, target, padding_mode="border").mul_(inside).add_(target).sub_(start)
        return voxels.moved(turn(np.linalg.inv(voxels.matrix) @ self.grid.affine, step))

    def inverse(self) -> tuple[Displacement, float]:
        """Return the forward displacement: nothing is lost, the residual is 0 mm."""
        return self.forward, 0.0


@dataclass(frozen=True, eq=False)
class Transform:
    """A map from fixed to moving world: ``parts`` take a fixed point in turn, the first part first.

    It pulls the moving image back onto the fixed grid: ``warped(x) = moving(T(x))``.
    """

    parts: tuple[Affine | Displacement, ...]

    def __post_init__(self) -> None:
        if len({part.dims for part in self.parts}) != 1:
            raise ValueError(f"expected parts of one dimension, got {[part.dims for part in self.parts]}")

    @classmethod
    def chain(cls, transforms: Iterable[Transform]) -> Transform:
        """Return the map that takes a fixed point through ``transforms`` in turn, the first one first.

        This is also the order of ``antsApplyTransforms -t first -t second``: the image is resampled as if by the last
        one first. Nothing is interpolated here.
        """
        return cls(tuple(part for transform in transforms for part in transform.parts))

    @property
    def dims(self) -> int:
        """Number of spatial dimensions."""
        return self.parts[0].dims

    @property
    def affine(self) -> Affine | None:
        """The whole map as one affine, or None where a displacement is among its parts."""
        matrix = np.eye(self.dims + 1)
        for part in self.parts:
            if not isinstance(part, Affine):
                return None
            matrix = part.matrix @ matrix
        return Affine(matrix)

    def move(self, world: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """Carry points (N, d) from fixed to moving world, RAS millimetres, float64.

        Args:
            world: the points.
            dtype: in which fields are read.
        """
        world = world.double()
        for part in self.parts:
            world = part.move(world, dtype)
        return world

    def inverse(self) -> tuple[Transform, float]:
        """Return the inverse, and its largest residual in mm: affines are inverted exactly, fields numerically.

        Raises:
            InputError: a part has no inverse.
        """
        pairs = [part.inverse() for part in reversed(self.parts)]
        return Transform(tuple(part for part, _ in pairs)), max(residual for _, residual in pairs)

    def ddf(self, fixed: Grid, moving: Grid) -> Tensor:
        """Evaluate the map on the fixed grid: its voxel x lies in the moving image at voxel ``x`` + field at ``x``.

        Returns:
            (1, d, *fixed.shape) float32.

        Raises:
            ValueError: grids of another dimension.
        """
        if {len(fixed.shape), len(moving.shape)} != {self.dims}:
            raise ValueError(f"expected {self.dims}D grids, got {fixed.shape} and {moving.shape}")
        if self.affine is not None:
            return affine_ddf(Grid(fixed.shape, self.affine.matrix @ fixed.affine), moving)
        field = torch.empty(1, self.dims, *fixed.shape)
        for rows, voxels in slabs(fixed):
            placed = voxels
            for part in self.parts:
                placed = part.place(placed)
            field[:, :, rows] = placed.seen_from(moving)
            field[:, 0, rows] -= rows.start
        return field

    def displacement(self, fixed: Grid) -> Displacement:
        """Return the whole map as one field on the fixed grid."""
        return Displacement(fixed, self.ddf(fixed, fixed))

    def unreached(self, fixed: Grid) -> list[Displacement]:
        """Return the fields that no voxel of ``fixed`` (of some thousands, evenly spread) comes into."""
        axes = [torch.linspace(0, n - 1, min(n, 24), dtype=torch.float64) for n in fixed.shape]
        world = fixed.to_world(torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, self.dims))
        missed = []
        for part in self.parts:
            if isinstance(part, Displacement) and not bool(part.grid.holds(part.grid.to_voxels(world)).any()):
                missed.append(part)
            world = part.move(world)
        return missed
