"""Reading volumes of slices: with channels along the last axis, and of a single slice too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..transform_io import Grid
from ..transform_io.images import affine4
from .images import check_intensities, check_label, checked_grid, existing, load_voxels, to_tensor
from .nifti import is_nifti, nifti_header

__all__ = ["read_volume", "read_volume_grid", "read_volume_label"]


def read_volume_grid(path: str | Path) -> Grid:
    """Read where a volume lies: a 3D grid, of one voxel along an axis where it is a single slice.

    Raises:
        InputError: missing, not an image, zero spacing or a singular affine.
    """
    path = existing(path, "image")
    return _nifti_grid(path) if is_nifti(path) else _read(path)[1]


def _nifti_grid(path: Path) -> Grid:
    """Return the grid of a NIfTI file; axes beyond the third hold channels."""
    shape, affine, spacing = nifti_header(path)
    if len(shape) < 2:
        raise InputError(f"{path}: found an image of shape {shape}, expected slices")
    shape = shape[:3]
    spacing = [s if i < len(shape) else 1.0 for i, s in enumerate(spacing)]
    return checked_grid(path, (*shape, 1)[:3], affine, spacing, 3, flat=True)


def _read(path: Path) -> tuple[np.ndarray, Grid]:
    """Return voxels (i, j, k, C) and their grid."""
    if is_nifti(path):
        grid = _nifti_grid(path)
        array, _, _ = load_voxels(path)
        if array.dtype.names:  # NIfTI's own type for colours
            array = np.stack([array[name] for name in array.dtype.names], axis=-1)
        array = array.reshape(*grid.shape, -1)
    else:
        array, found, count = load_voxels(path)
        flat = Grid((*found.shape, 1)[:3], affine4(found)) if len(found.shape) == 2 else found
        grid = checked_grid(path, flat.shape, flat.affine, list(flat.spacing_mm), 3, flat=True)
        array = array.reshape(*grid.shape, count)
    if array.dtype.kind == "c":
        raise InputError(f"{path}: found {array.dtype} voxels, expected real channels")
    return array, grid


def read_volume(path: str | Path, channels: int | None = None) -> tuple[Tensor, Grid]:
    """Read an image of one or several channels.

    In NIfTI the channels are the last axis, as in the Medical Decathlon, or its type for colours; other formats as
    ITK reads them (PNG photographs too).

    Args:
        path: a volume, or a single slice.
        channels: how many are expected; None takes any number.

    Returns:
        voxels (C, i, j, k) float32 and the 3D grid.

    Raises:
        InputError: unreadable, another number of channels, zero spacing, a singular affine, NaN or infinite voxels,
            or one constant value.
    """
    path = existing(path, "image")
    array, grid = _read(path)
    if channels is not None and array.shape[-1] != channels:
        raise InputError(f"{path}: found {array.shape[-1]} channels, expected {channels}")
    image = to_tensor(np.moveaxis(array, -1, 0)).to(torch.float32)
    return check_intensities(path, image).contiguous(), grid


def read_volume_label(path: str | Path, image_grid: Grid) -> Tensor:
    """Read the label map that belongs to a volume.

    Returns:
        (1, i, j, k) int16.

    Raises:
        InputError: unreadable, of another size or elsewhere in the world than its image, or with fractional,
            negative or huge values.
    """
    path = existing(path, "label")
    array, grid = _read(path)
    if array.shape[-1] != 1:
        raise InputError(f"{path}: found a label map of {array.shape[-1]} channels, expected one")
    return check_label(path, to_tensor(array[..., 0]), grid, image_grid, strict=True)[None]
