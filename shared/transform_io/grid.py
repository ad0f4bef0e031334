"""Voxel lattices in the world, and fields and points carried from one to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from ..warp import warp
from .plane import Plane

__all__ = ["Grid", "affine_ddf", "lps", "network_grid", "points_to_grid", "spatial", "to_native", "turn"]


@dataclass(frozen=True, eq=False)
class Grid:
    """A lattice of ``shape`` voxels; ``affine`` (d+1, d+1) takes voxel indices to RAS millimetres.

    A single slice of a volume is a 2D lattice; its millimetres are those of its ``plane``, which files need.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    plane: Plane | None = None

    @property
    def thick(self) -> Grid:
        """The lattice as its file holds it: a slice of a volume is 3D, with one voxel along an axis."""
        if self.plane is None:
            return self
        shape = list(self.shape)
        shape.insert(self.plane.axis, 1)
        return Grid(tuple(shape), self.plane.affine(self.affine))

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Voxel size along each axis."""
        return tuple(float(s) for s in np.linalg.norm(self.affine[:-1, :-1], axis=0))

    def to_world(self, voxels: Tensor) -> Tensor:
        """Carry voxel coordinates (N, d) to RAS millimetres (N, d), in float64."""
        return _mapped(self.affine, voxels)

    def to_voxels(self, world: Tensor) -> Tensor:
        """Carry RAS millimetres (N, d) to voxel coordinates (N, d), in float64."""
        return _mapped(np.linalg.inv(self.affine), world)

    def holds(self, voxels: Tensor) -> Tensor:
        """Tell which voxel coordinates (N, d) lie inside the outer voxel edges -> (N,) bool."""
        last = torch.tensor(self.shape, dtype=voxels.dtype, device=voxels.device) - 0.5
        return ((voxels >= -0.5) & (voxels <= last)).all(dim=-1)

    @property
    def key(self) -> tuple:
        """Hashable identity: equal for grids that agree to a micrometre."""
        return (self.shape, tuple(np.round(self.affine, 3).ravel().tolist()))

    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest RAS coordinates of the outer voxel edges, in mm."""
        d = len(self.shape)
        edges = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in self.shape], indexing="ij")).reshape(d, -1)
        world = self.affine[:-1, :-1] @ edges + self.affine[:-1, -1:]
        return world.min(1), world.max(1)

    def box_mm(self) -> str:
        """Extent of the outer voxel edges in RAS, for messages."""
        low, high = self.box()
        return ", ".join(f"{a}:{low[i]:.0f}..{high[i]:.0f} mm" for i, a in enumerate("xyz"[: len(self.shape)]))


def _mapped(matrix: np.ndarray, points: Tensor) -> Tensor:
    matrix = torch.as_tensor(matrix, dtype=torch.float64, device=points.device)
    return points.double() @ matrix[:-1, :-1].T + matrix[:-1, -1]


def lps(dims: int) -> np.ndarray:
    """Return the (d+1, d+1) matrix that takes RAS to LPS millimetres; it is its own inverse."""
    return np.diag([*[-1.0, -1.0, 1.0][:dims], 1.0])


def spatial(affine4: np.ndarray, dims: int) -> np.ndarray:
    """Cut a 4 x 4 affine, as NIfTI headers hold it, to (d+1, d+1)."""
    small = np.eye(dims + 1)
    small[:dims, :dims], small[:dims, dims] = affine4[:dims, :dims], affine4[:dims, 3]
    return small


def network_grid(image: Grid, size: Sequence[int] | None = None, spacing_mm: Sequence[float] | None = None) -> Grid:
    """Return the grid a network works on for an image: same centre, same axes but in the closest RAS order.

    Args:
        image: the fixed image's grid.
        size: voxels per axis; ``None`` covers the field of view at ``spacing_mm``.
        spacing_mm: voxel size; ``None`` stretches ``size`` over the field of view.

    Raises:
        ValueError: neither is given.
    """
    if size is None and spacing_mm is None:
        raise ValueError("give size, spacing_mm or both")
    d = len(image.shape)
    full = np.eye(4)
    full[:d, :d], full[:d, 3] = image.affine[:d, :d], image.affine[:d, d]
    orientation = nib.orientations.io_orientation(full)[:d]
    order = np.argsort(orientation[:, 0])  # order[w]: the image axis closest to world axis w
    sign = orientation[order, 1]
    shape = np.array(image.shape)[order]
    unit = image.affine[:d, :d][:, order] * sign
    extent = np.linalg.norm(unit, axis=0) * shape
    direction = unit / np.linalg.norm(unit, axis=0)
    voxel = extent / np.array(size) if spacing_mm is None else np.array(spacing_mm, dtype=float)
    new_shape = np.maximum(1, np.ceil(extent / voxel - 1e-6)).astype(int) if size is None else np.array(size)
    centre = image.affine[:d, :d] @ ((np.array(image.shape) - 1) / 2) + image.affine[:d, d]
    affine = np.eye(d + 1)
    affine[:d, :d] = direction * voxel
    affine[:d, d] = centre - affine[:d, :d] @ ((new_shape - 1) / 2)
    return Grid(tuple(int(n) for n in new_shape), affine)


def affine_ddf(target: Grid, source: Grid, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return (1, d, *target.shape): ``x + ddf(x)`` is the voxel of ``source`` at the world point of target voxel x."""
    matrix = np.linalg.inv(source.affine) @ target.affine
    d = len(target.shape)
    slope = matrix[:d, :d] - np.eye(d)
    field = torch.empty(1, d, *target.shape, dtype=dtype)
    for i in range(d):
        ramps = [slope[i, j] * np.arange(n) for j, n in enumerate(target.shape)]
        # All axes but the last together, then that: nothing but the result has the image's size.
        face = torch.from_numpy(reduce(np.add.outer, ramps[:-1]) + matrix[i, d]).to(dtype)
        torch.add(face[..., None], torch.from_numpy(ramps[-1]).to(dtype), out=field[0, i])
    return field


def turn(matrix: np.ndarray, field: Tensor) -> Tensor:
    """Multiply every vector of ``field`` (B, d, *S) by the d x d part of ``matrix``."""
    d = field.shape[1]
    return torch.einsum("ij,bj...->bi...", torch.as_tensor(matrix[:d, :d]).to(field), field)


def to_native(ddf: Tensor, network: Grid, fixed: Grid, moving: Grid) -> tuple[Tensor, Tensor]:
    """Carry a field from the network's grid to the fixed image's own grid.

    Args:
        ddf: (1, d, *network.shape) displacement in network voxels, fixed to moving through the common world frame.
        network: grid of ``ddf``.
        fixed: grid of the fixed image.
        moving: grid of the moving image.

    Returns:
        ``fixed_ddf`` (1, d, *fixed.shape) in fixed voxels (the deformation: folds, TRE and files come from it), and
        ``total_ddf`` of the same shape with ``warped(x) = moving(x + total_ddf(x))`` in the moving image's voxels.
    """
    at_network = affine_ddf(fixed, network, ddf.dtype).to(ddf.device)
    fixed_ddf = turn(np.linalg.inv(fixed.affine) @ network.affine, warp(ddf, at_network, padding_mode="border"))
    del at_network
    total = affine_ddf(fixed, moving, ddf.dtype).to(ddf.device)
    total += turn(np.linalg.inv(moving.affine) @ fixed.affine, fixed_ddf)
    return fixed_ddf, total


def points_to_grid(points: Tensor, source: Grid, target: Grid) -> Tensor:
    """Carry voxel coordinates (N, d) of ``source`` to those of ``target``, through the world frame."""
    matrix = torch.as_tensor(np.linalg.inv(target.affine) @ source.affine, dtype=torch.float64)
    d = len(source.shape)
    return (points.double() @ matrix[:d, :d].T + matrix[:d, d]).to(points.dtype)
