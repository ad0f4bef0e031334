"""The files of a pair, read and checked before any work begins."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..apply import looks_like_labels
from ..data.images import axes_as_image, check_intensities, check_label, existing, read_voxels, to_tensor
from ..errors import InputError
from ..transform_io import Grid, PointFile, read_point_file

__all__ = ["Files", "Pair", "Side", "read_pair", "read_side"]

# No atlas tells so many structures apart; an image given as a label map has more.
_MOST_LABELS = 2000
# What looks like a label map and has no more values is one; images of large flat areas have more.
_SURELY_LABELS = 128


@dataclass(frozen=True)
class Files:
    """What belongs to one image; anything but the image may be None.

    Attributes:
        image: NIfTI, NRRD, MetaImage, or a folder that holds one DICOM series.
        label: label map on the image's grid, its axes in any order and direction.
        mask: not zero where the image counts, likewise.
        points: `.csv`, `.pts` or `.fcsv` (:mod:`shared.transform_io.points`).
        frame: which one of a time series or of several channels.
    """

    image: str | Path
    label: str | Path | None = None
    mask: str | Path | None = None
    points: str | Path | None = None
    frame: int | None = None


@dataclass(frozen=True, eq=False)
class Side:
    """One image with what belongs to it.

    Attributes:
        name: of the image file.
        image: (1, 1, *S) float32.
        grid: its lattice.
        label: (*S) in the file's own type.
        mask: (1, 1, *S) int16.
        points: the file; ``world`` holds its points.
        world: (N, d) RAS millimetres, float64.
        outside: how many points lie outside the image.
    """

    name: str
    image: Tensor
    grid: Grid
    label: np.ndarray | None = None
    mask: Tensor | None = None
    points: PointFile | None = None
    world: Tensor | None = None
    outside: int = 0

    def placed(self, matrix: np.ndarray) -> Side:
        """Return this (moving) side in the frame of the fixed image, which ``matrix`` takes to its own."""
        return replace(self, grid=Grid(self.grid.shape, np.linalg.inv(matrix) @ self.grid.affine))


@dataclass(frozen=True, eq=False)
class Pair:
    """Both sides."""

    fixed: Side
    moving: Side

    def messages(self) -> list[str]:
        """What a user should know about the points."""
        sides = (("fixed", self.fixed), ("moving", self.moving))
        return [
            f"{side.outside} of {len(side.world)} {name} points lie outside the {name} image: they are kept"
            for name, side in sides
            if side.world is not None and side.outside
        ]


def read_pair(fixed: Files, moving: Files) -> Pair:
    """Read both sides, in 2D or 3D as the fixed image is.

    Raises:
        InputError: a file that cannot be used, or points that are not as many on both sides.
    """
    first = read_side(fixed, "fixed", None)
    second = read_side(moving, "moving", len(first.grid.shape))
    counts = [len(side.world) for side in (first, second) if side.world is not None]
    if len(counts) == 2 and counts[0] != counts[1]:
        raise InputError(
            f"{fixed.points}, {moving.points}: found {counts[0]} and {counts[1]} points, "
            "expected as many in both files, matching line by line"
        )
    return Pair(first, second)


def read_side(files: Files, role: str, dims: int | None) -> Side:
    """Read one side, ``role`` "fixed" or "moving"; ``dims`` None takes 2D and 3D.

    Raises:
        InputError: a file that cannot be used.
    """
    path = existing(files.image, f"{role} image")
    voxels, grid = read_voxels(path, dims, files.frame)
    if voxels.min() >= 0 and looks_like_labels(voxels) and voxels.min() < voxels.max():
        _doubt(path, role, len(np.unique(voxels)))
    side = Side(path.name, check_intensities(path, to_tensor(voxels).float())[None, None], grid)
    label = _read_label(files.label, grid) if files.label is not None else None
    mask = _read_mask(files.mask, grid) if files.mask is not None else None
    side = replace(side, label=label, mask=mask)
    if files.points is None:
        return side
    points = read_point_file(files.points, len(grid.shape))
    world = points.world(grid)
    outside = int((~grid.holds(grid.to_voxels(world))).sum())
    return replace(side, points=points, world=world, outside=outside)


def _doubt(path: Path, role: str, values: int) -> None:
    """Refuse what looks like a label map where an image is expected; an image is possible where it has many values."""
    said = f"{path}: looks like a label map ({values} whole values)"
    if values <= _SURELY_LABELS:
        raise InputError(f"{said}, expected an image of intensities; a label map goes with --{role}_label")
    warnings.warn(f"{said}; it is taken for an image of intensities", stacklevel=4)


def _read_label(label: str | Path, grid: Grid) -> np.ndarray:
    path = existing(label, "label")
    voxels, own = axes_as_image(path, *read_voxels(path, len(grid.shape)), grid)
    values = torch.unique(check_label(path, to_tensor(voxels), own, grid, strict=True))
    if len(values) > _MOST_LABELS:
        raise InputError(f"{path}: found {len(values)} values, expected a label map (is it an image?)")
    if not bool((values > 0).any()):
        raise InputError(f"{path}: found no label above zero, expected one or more")
    return voxels.astype(voxels.dtype.newbyteorder("="), copy=False)


def _read_mask(mask: str | Path, grid: Grid) -> Tensor:
    path = existing(mask, "mask")
    voxels, own = axes_as_image(path, *read_voxels(path, len(grid.shape)), grid, "mask")
    checked = check_label(path, to_tensor(voxels), own, grid, "mask", strict=True)
    if not bool((checked > 0).any()):
        raise InputError(f"{path}: found an empty mask, expected voxels above zero where the image counts")
    return checked[None, None]
