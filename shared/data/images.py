"""Reading images, label maps and points, with every check at the door."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..transform_io import Grid, in_plane, read_with_itk
from .nifti import is_nifti, nifti_header, reason, warn_of_frames

__all__ = ["read_grid", "read_image", "read_label", "read_points", "read_voxels"]


def existing(path: str | Path, role: str) -> Path:
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such {role} file; expected an existing NIfTI, NRRD or MetaImage file")
    return path


def checked_grid(
    path: Path, shape: tuple[int, ...], affine: np.ndarray, spacing: list[float], dims: int | None, flat: bool = False
) -> Grid:
    """Turn a header into a grid, 2D or 3D where ``dims`` is None; trailing axes of one voxel are no dimensions.

    A volume of one voxel along an axis is a 2D image in its own plane; as a 3D one it is refused unless ``flat``.
    """
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if dims != 3 and len(shape) == 3 and 1 in shape:
        return _slice_grid(path, shape, affine, spacing)
    dims = dims or min(len(shape), 3)
    if len(shape) != dims:
        hint = f"; pick one time frame or channel (frame: 0..{int(np.prod(shape[3:])) - 1})" if len(shape) > 3 else ""
        raise InputError(f"{path}: found a {len(shape)}D image of shape {shape}, expected {dims}D{hint}")
    if len(shape) == 3 and dims == 3 and min(shape) == 1 and not flat:
        raise InputError(f"{path}: found a 2D image (shape {shape}), expected 3D")
    if any(s <= 0 or not np.isfinite(s) for s in spacing[:dims]):
        raise InputError(f"{path}: found voxel spacing {spacing[:dims]} mm, expected every spacing above zero")
    small = np.eye(dims + 1)
    small[:dims, :dims], small[:dims, dims] = affine[:dims, :dims], affine[:dims, -1]
    scale = float(np.prod(np.linalg.norm(small[:dims, :dims], axis=0)))
    if not np.isfinite(small).all() or scale == 0 or abs(np.linalg.det(small[:dims, :dims])) < 1e-6 * scale:
        expected = "an invertible one" if dims == 3 else "an invertible one (a 2D image lies in the plane x, y)"
        raise InputError(f"{path}: found a singular affine {small[:dims].tolist()}, expected {expected}")
    return Grid(tuple(int(n) for n in shape), small)


def _slice_grid(path: Path, shape: tuple[int, ...], affine: np.ndarray, spacing: list[float]) -> Grid:
    """Return the 2D grid of a volume of one slice."""
    axis = max(a for a in range(3) if shape[a] == 1)
    kept = [a for a in range(3) if a != axis]
    if any(spacing[a] <= 0 or not np.isfinite(spacing[a]) for a in kept):
        raise InputError(f"{path}: found voxel spacing {spacing} mm, expected every spacing above zero")
    whole = np.eye(4)
    whole[:3, :3], whole[:3, 3] = affine[:3, :3], affine[:3, -1]
    try:
        flat, plane = in_plane(whole, axis)
    except ValueError:
        raise InputError(f"{path}: found a singular affine {whole[:3].tolist()}, expected an invertible one") from None
    return Grid((int(shape[kept[0]]), int(shape[kept[1]])), flat, plane)


def read_grid(path: str | Path, spatial_dims: int | None = 3, any_frame: bool = False) -> Grid:
    """Read only the header of an image file (NIfTI) and check it; other formats are read whole.

    Args:
        path: the image.
        spatial_dims: 2 or 3; None takes either.
        any_frame: take the grid that all frames of a time series share, instead of refusing it.

    Raises:
        InputError: missing, not an image, other dimensions, zero spacing or a singular affine.
    """
    path = existing(path, "image")
    if not is_nifti(path):
        return read_voxels(path, spatial_dims, 0 if any_frame else None)[1]
    shape, affine, spacing = nifti_header(path)
    grid = checked_grid(path, shape[:3] if any_frame else shape, affine, spacing, spatial_dims)
    warn_of_frames(path)
    return grid


def _one_frame(path: Path, shape: tuple[int, ...], frame: int | None) -> tuple[tuple[int, ...], int | None]:
    """Return the shape of one frame and its number, None where the file holds a single one."""
    count = int(np.prod(shape[3:], dtype=int))
    if count == 1:
        frame = None
    if frame is not None and not 0 <= frame < count:
        raise InputError(f"{path}: found {count} frames, expected frame to be one of 0..{count - 1}, got {frame}")
    return (shape if frame is None else shape[:3]), frame


def read_voxels(path: str | Path, spatial_dims: int | None = 3, frame: int | None = None) -> tuple[np.ndarray, Grid]:
    """Read an image as it stands: NIfTI, what ITK reads, or a folder that holds one DICOM series.

    Args:
        path: file or folder.
        spatial_dims: 2 or 3; None takes either.
        frame: which one of a time series or of several channels, from 0.

    Returns:
        voxels (*S) in the file's own type, and the grid.

    Raises:
        InputError: unreadable, wrong dimensions, colour or complex voxels, several frames and none chosen.
    """
    path = existing(path, "image")
    if is_nifti(path):
        shape, affine, spacing = nifti_header(path)
        chosen, frame = _one_frame(path, shape, frame)
        grid = checked_grid(path, chosen, affine, spacing, spatial_dims)
        warn_of_frames(path)
        array, _, count = load_voxels(path)
    else:
        array, itk_grid, count = load_voxels(path)
        chosen, frame = _one_frame(path, itk_grid.shape, frame)
        grid = checked_grid(path, chosen, itk_grid.affine, list(itk_grid.spacing_mm), spatial_dims)
    if count > 1 or array.dtype.names:
        raise InputError(f"{path}: found several values a voxel (colour or vectors), expected one real channel")
    if array.dtype.kind == "c":
        raise InputError(f"{path}: found {array.dtype} voxels of shape {array.shape}, expected one real channel")
    if frame is not None:
        array = array.reshape(*array.shape[:3], -1)[..., frame]
    return np.ascontiguousarray(array.reshape(grid.shape)), grid


def load_voxels(path: Path) -> tuple[np.ndarray, Grid, int]:
    """Return voxels, grid and number of components; the grid of a NIfTI file is its header's business."""
    try:
        if is_nifti(path):
            # nibabel: its float64 affine is exact, and a truncated file is an error.
            return np.asarray(nib.load(path).dataobj), Grid((), np.eye(1)), 1
        return read_with_itk(path)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{path}: its voxels cannot be read ({reason(error)}); expected a complete image file"
        ) from error


def to_tensor(array: np.ndarray) -> Tensor:
    """Return voxels of any NIfTI type and byte order as a tensor."""
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)  # torch has few functions for wide unsigned integers
    return torch.as_tensor(array.astype(array.dtype.newbyteorder("="), copy=False))


def read_image(path: str | Path, spatial_dims: int = 3) -> tuple[Tensor, Grid]:
    """Read an intensity image.

    Returns:
        voxels (1, *S) float32 and the grid.

    Raises:
        InputError: unreadable, wrong dimensions, NaN or infinite voxels, or one constant value.
    """
    path = existing(path, "image")
    array, grid = read_voxels(path, spatial_dims)
    return check_intensities(path, to_tensor(array).to(torch.float32))[None], grid


def check_intensities(path: Path, image: Tensor) -> Tensor:
    """Return intensities as they are; raise InputError for NaN, infinite or constant ones."""
    bad = int((~torch.isfinite(image)).sum())
    if bad:
        raise InputError(f"{path}: found {bad} NaN or infinite voxels, expected finite intensities")
    if bool(image.min() == image.max()):
        raise InputError(f"{path}: found the constant value {float(image.min()):g}, expected an image with contrast")
    return image


def read_label(path: str | Path, image_grid: Grid, spatial_dims: int = 3, role: str = "label") -> Tensor:
    """Read a label map or mask that belongs to an image.

    Returns:
        (1, *S) int16.

    Raises:
        InputError: unreadable, of another size than its image, or with fractional, negative or huge values.
    """
    path = existing(path, role)
    array, grid = axes_as_image(path, *read_voxels(path, spatial_dims), image_grid, role)
    return check_label(path, to_tensor(array), grid, image_grid, role)[None]


def _strays(grid: Grid, image: Grid) -> float:
    """Return by how many voxels of an image another lattice of its size lies off, at the most."""
    if grid.thick.shape == image.thick.shape:
        grid, image = grid.thick, image.thick
    shift = np.linalg.inv(image.affine) @ grid.affine - np.eye(len(grid.shape) + 1)
    return float((np.abs(shift[:-1, :-1]) @ np.array(grid.shape) + np.abs(shift[:-1, -1])).max())


def axes_as_image(
    path: Path, voxels: np.ndarray, grid: Grid, image: Grid, role: str = "label"
) -> tuple[np.ndarray, Grid]:
    """Bring a label map or mask (*S) that is stored with other axes into the order of its image, and say so.

    Only where flipped and exchanged axes are all that the two lattices differ by; anything else comes back as it is.
    """
    if grid.shape == image.shape and _strays(grid, image) <= 1:
        return voxels, grid
    orientation = nib.orientations.io_orientation(np.linalg.inv(image.affine) @ grid.affine)
    turned = np.ascontiguousarray(nib.orientations.apply_orientation(voxels, orientation))
    own = Grid(turned.shape, grid.affine @ nib.orientations.inv_ornt_aff(orientation, grid.shape))
    if grid.plane is not None and image.plane is not None:
        # Which axis of a file a slice has its one voxel on is nothing to its pixels.
        own = replace(own, plane=replace(grid.plane, axis=image.plane.axis, step=image.plane.step))
    if own.shape != image.shape or _strays(own, image) > 1:
        return voxels, grid
    warnings.warn(f"{path}: this {role} is stored with other axes than its image; they are reordered", stacklevel=3)
    return turned, own


def check_label(
    path: Path, voxels: Tensor, grid: Grid, image_grid: Grid, role: str = "label", strict: bool = False
) -> Tensor:
    """Return label values (*S) as int16.

    Raises:
        InputError: of another size than the image, with fractional, negative or huge values, or, if ``strict``,
            elsewhere in the world.
    """
    if grid.shape != image_grid.shape:
        raise InputError(f"{path}: found a {role} of size {grid.shape}, expected its image's size {image_grid.shape}")
    if _strays(grid, image_grid) > 1:
        if strict:
            raise InputError(
                f"{path}: found a {role} that lies elsewhere in the world than its image ({grid.box_mm()} and "
                f"{image_grid.box_mm()}), expected one grid for both"
            )
        warnings.warn(
            f"{path}: this {role} lies elsewhere in the world than its image; it is taken voxel by voxel on the "
            "image's grid",
            stacklevel=2,
        )
    if not bool(torch.isfinite(voxels.double()).all()):
        raise InputError(f"{path}: found NaN or infinite values in a {role}, expected whole numbers")
    if voxels.is_floating_point():
        fractional = int((voxels != voxels.round()).sum())
        if fractional:
            raise InputError(
                f"{path}: found fractional values in {fractional} voxels of a {role}, expected whole numbers "
                "(was it resampled linearly, or is it an image?)"
            )
    if int(voxels.min()) < 0 or int(voxels.max()) > np.iinfo(np.int16).max:
        raise InputError(f"{path}: found {role} values {int(voxels.min())}..{int(voxels.max())}, expected 0..32767")
    return voxels.to(torch.int16)


def read_points(path: str | Path, spatial_dims: int = 3) -> Tensor:
    """Read a Learn2Reg keypoint file: one point a line, comma separated voxel coordinates, no header.

    Returns:
        (N, d) float32.

    Raises:
        InputError: missing, no numbers, or other than ``spatial_dims`` columns.
    """
    path = existing(path, "keypoint")
    try:
        points = np.loadtxt(path, delimiter=",", dtype=np.float32, ndmin=2)
    except (ValueError, OSError) as error:
        raise InputError(
            f"{path}: not readable as points ({reason(error)}); expected comma separated numbers"
        ) from error
    if points.size == 0 or points.shape[1] != spatial_dims or not np.isfinite(points).all():
        raise InputError(f"{path}: found {points.shape} values, expected finite numbers in {spatial_dims} columns")
    return torch.from_numpy(points)
