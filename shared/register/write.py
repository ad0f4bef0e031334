"""The files of a registration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from ..apply import resample
from ..transform_io import (
    Affine,
    Displacement,
    Grid,
    Plane,
    Transform,
    in_space,
    write_itk_displacement,
    write_point_file,
)
from .inputs import Side

__all__ = ["WRITTEN", "pulled", "remove_earlier", "storable_inverse", "storable_label", "write_points", "write_whole"]

# All files of a registration; those of labels and points are not written by every one.
WRITTEN = (
    "metrics.json",
    "warped.nii.gz",
    "transform.h5",
    "transform.nii.gz",
    "inverse_transform.h5",
    "inverse_transform.nii.gz",
    "affine.txt",
    "warped_label.nii.gz",
    "warped_points.csv",
    "fixed_points_in_moving.csv",
    "qc.png",
)
# Voxels of the fixed grid that an image is pulled to at once.
_AT_ONCE = 4_000_000
_MOST_VOXELS = 4_000_000


def remove_earlier(folder: Path) -> None:
    """Remove what an earlier registration wrote, ``metrics.json`` first: where it is, all files belong together."""
    for name in WRITTEN:
        (folder / name).unlink(missing_ok=True)


def pulled(voxels: np.ndarray, transform: Transform, fixed: Grid, moving: Grid, interpolation: str) -> np.ndarray:
    """Pull an image (*S) onto the fixed grid as `shared.apply.resample` does, some slices at a time."""
    rows = max(1, _AT_ONCE // max(1, int(np.prod(fixed.shape[1:]))))
    parts = []
    for first in range(0, fixed.shape[0], rows):
        affine = fixed.affine.copy()
        affine[:-1, -1] += first * fixed.affine[:-1, 0]
        part = Grid((min(rows, fixed.shape[0] - first), *fixed.shape[1:]), affine)
        parts.append(resample(voxels, transform.ddf(part, moving), interpolation))
    return np.concatenate(parts)


def storable_inverse(inverse: Transform) -> Transform:
    """Return an inverse whose fields are lattices fine enough to be read linearly, as other programs do.

    Ours corrects what it reads (:class:`shared.transform_io.Transform`). Lattices become up to twice as fine, four
    million voxels at most.
    """
    parts: list[Affine | Displacement] = []
    for part in inverse.parts:
        if isinstance(part, Affine):
            parts.append(part)
            continue
        d, size = part.dims, np.array(part.grid.shape)
        factor = min(2.0, max(1.0, (_MOST_VOXELS / size.prod()) ** (1 / d)))
        shape = np.floor((size - 1) * factor).astype(int) + 1
        affine = part.grid.affine.copy()
        affine[:d, :d] = affine[:d, :d] * ((size - 1) / np.maximum(shape - 1, 1))
        fine = Grid(tuple(int(n) for n in shape), affine)
        parts.append(Transform((part,)).displacement(fine))
    return Transform(tuple(parts))


def storable_label(label: np.ndarray) -> np.ndarray:
    """Return a label map in its own type, or whole numbers where that type is not one of NIfTI's everyday ones."""
    if label.dtype.kind == "b":
        return label.astype(np.uint8)
    if label.dtype.name in ("int64", "uint64"):
        return label.astype(np.int32)
    return label


def write_whole(
    path: Path, transform: Transform, ddf: Tensor, grid: Grid, fixed: Plane | None, moving: Plane | None
) -> None:
    """Write a transform as one displacement field for ITK; between two slices as one in space.

    Args:
        path: of the field.
        transform: from the image at the field's grid.
        ddf: (1, d, *S) in voxels of ``grid``: the whole transform there.
        grid: of the field.
        fixed: plane of the image at the field's grid; None where it is no slice of a volume.
        moving: plane of the other image.
    """
    if fixed is not None and moving is not None:
        # ITK drops trailing axes of one voxel of a vector image, so that this one goes first.
        grid = Grid(grid.shape, grid.affine, replace(fixed, axis=0)).thick
        ddf = in_space(transform, fixed, moving).ddf(grid, grid)
    write_itk_displacement(path, ddf, grid)


def write_points(
    folder: Path, transform: Transform, inverse: Transform, fixed: Side, moving: Side
) -> dict[str, dict[str, int]]:
    """Write the moving points where they land in the fixed image, and the fixed points in the moving image.

    Returns:
        for ``warped`` and ``fixed_in_moving``: how many, and how many of them land outside the image.
    """
    found = {}
    for name, source, target, there in (
        ("warped_points", moving, fixed, inverse),
        ("fixed_points_in_moving", fixed, moving, transform),
    ):
        if source.world is None or source.points is None:
            continue
        landed = there.move(source.world)
        write_point_file(folder / f"{name}.csv", landed, source.points, target.grid)
        outside = int((~target.grid.holds(target.grid.to_voxels(landed))).sum())
        found[name] = {"count": len(landed), "outside": outside}
    return found
