"""Transforms between two single slices, in the plane as we work with them and in space as ITK reads such files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from .files import read_transform
from .grid import Grid
from .plane import Plane
from .transform import Affine, Displacement, Transform

__all__ = ["in_space", "read_between"]


def in_space(transform: Transform, fixed: Plane | None, moving: Plane | None) -> Transform:
    """Return a 2D transform between two slices as a 3D one: fields of one slice, and what leads from plane to plane.

    Args:
        transform: fixed to moving, in-plane millimetres: fields in the plane of the image that they live on, and an
            affine between those of the fixed and the moving image.
        fixed: plane of the fixed slice; None where that is no slice of a volume.
        moving: plane of the moving slice, likewise; without both the transform comes back as it is.
    """
    if fixed is None or moving is None:
        return transform
    parts: list[Affine | Displacement] = []
    here = fixed
    for part in transform.parts:
        if isinstance(part, Displacement):
            parts.append(_thick(part, here))
        else:
            matrix = np.eye(4)
            matrix[:2, :2], matrix[:2, 3] = part.matrix[:2, :2], part.matrix[:2, 2]
            parts.append(Affine(moving.matrix @ matrix @ np.linalg.inv(here.matrix)))
            here = moving
    if not np.allclose(here.matrix, moving.matrix, atol=1e-6):
        parts.append(Affine(moving.matrix @ np.linalg.inv(here.matrix)))
    return Transform(tuple(parts))


def _thick(field: Displacement, plane: Plane) -> Displacement:
    """Return a field in a plane as one of a single slice in space."""
    components = list(field.ddf[0].unbind(0))
    components.insert(plane.axis, torch.zeros_like(components[0]))
    ddf = torch.stack(components).unsqueeze(1 + plane.axis)[None]
    return Displacement(Grid(field.grid.shape, field.grid.affine, plane).thick, ddf)


def read_between(path: str | Path, fixed: Grid, moving: Grid) -> Transform:
    """Read a transform for a pair, one in space for two slices too.

    Args:
        path: the file.
        fixed: grid of the fixed image.
        moving: grid of the moving image.

    Returns:
        A transform of the grids' dimensions.

    Raises:
        InputError: not a transform of their dimensions, or one that leads out of the moving slice.
    """
    dims = len(fixed.shape)
    if fixed.plane is None or moving.plane is None:
        return read_transform(path, dims, fixed, moving)
    transform = read_transform(path, None, fixed, moving)
    if transform.dims == dims:
        return transform
    back = np.linalg.inv(moving.plane.matrix)
    affine = transform.affine
    if affine is not None:
        matrix = back @ affine.matrix @ fixed.plane.matrix
        flat: Affine | Displacement = Affine(matrix[np.ix_([0, 1, 3], [0, 1, 3])])
    else:
        whole = Transform((*transform.parts, Affine(fixed.plane.matrix @ back))).displacement(fixed.thick)
        kept = [a for a in range(3) if a != fixed.plane.axis]
        flat = Displacement(fixed, whole.ddf[:, kept].squeeze(2 + fixed.plane.axis))
    _check_reach(path, transform, fixed, moving.plane)
    return Transform((flat,))


def _check_reach(path: str | Path, transform: Transform, fixed: Grid, moving: Plane) -> None:
    """Raise InputError where a transform leads half a slice or more away from the moving slice."""
    corners = np.array(np.meshgrid(*[(0.0, n - 1.0) for n in fixed.thick.shape], indexing="ij")).reshape(3, -1).T
    landed = transform.move(fixed.thick.to_world(torch.from_numpy(corners))).numpy()
    normal = moving.matrix[:3, 2]
    away = float(np.abs((landed - moving.matrix[:3, 3]) @ normal).max())
    if away > 0.5 * abs(float(normal @ moving.step)):
        raise InputError(
            f"{path}: found a transform that leads {away:.3g} mm out of the moving slice's plane, expected one that "
            "takes the fixed slice to the moving one"
        )
