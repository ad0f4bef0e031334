"""Learn2Reg's displacement files: for each fixed voxel how many voxels further it lies in the moving image's array.

They hold numbers of voxels and nothing of the world, so both images' grids are needed. As the challenge's evaluation
reads them (Hering et al., TMI 2022): since 2022 ``.nii.gz`` or ``.npz`` (key ``arr_0``) of shape (i, j, k, 3); in 2020
and 2021 ``.npz`` of shape (3, i, j, k), for most tasks at half the size and still in voxels of the full one.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from nibabel.filebasedimages import ImageFileError

from ..errors import InputError
from ..files import atomic_write
from .grid import Grid
from .images import affine4, save_nifti
from .transform import Displacement, Transform

__all__ = ["read_learn2reg", "write_learn2reg"]


def _load(path: Path) -> np.ndarray:
    try:
        if path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                keys = list(archive)
                if "arr_0" not in keys and len(keys) != 1:
                    raise InputError(f"{path}: found the arrays {keys}, expected one named 'arr_0'")
                return archive["arr_0" if "arr_0" in keys else keys[0]]
        return np.asarray(nib.load(path).dataobj)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, ImageFileError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not readable as a transform ({type(error).__name__}); expected an array") from error


def _full_size(path: Path, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return (d, *shape) float64."""
    from scipy.ndimage import zoom

    d = len(shape)
    if array.shape == (*shape, d):
        full = np.moveaxis(array, -1, 0)
    elif array.shape == (d, *shape):
        full = array
    elif array.shape == (d, *[n // 2 for n in shape]) and all(n % 2 == 0 for n in shape):
        # Quadratic splines between corner voxels, as the evaluation of those years did.
        full = np.stack([zoom(component.astype(np.float64), 2, order=2) for component in array])
    else:
        half = tuple(n // 2 for n in shape)
        raise InputError(
            f"{path}: found displacements of shape {array.shape}, expected {(*shape, d)}, {(d, *shape)} or "
            f"{(d, *half)} for this fixed image"
        )
    full = full.astype(np.float64)
    if not np.isfinite(full).all():
        raise InputError(f"{path}: found NaN or infinite displacements, expected finite ones")
    return full


def read_learn2reg(path: str | Path, fixed: Grid, moving: Grid) -> Transform:
    """Read a displacement file of a pair with these grids.

    Raises:
        InputError: not readable, of another size than the fixed image, or with NaN.
    """
    path = Path(path)
    total = _full_size(path, _load(path), fixed.shape)
    d = len(fixed.shape)
    voxels = np.stack(np.meshgrid(*[np.arange(n, dtype=np.float64) for n in fixed.shape], indexing="ij"))
    matrix = np.linalg.inv(fixed.affine) @ moving.affine
    landed = np.einsum("ij,j...->i...", matrix[:d, :d], voxels + total) + matrix[:d, d].reshape(d, *[1] * d)
    return Transform((Displacement(fixed, torch.from_numpy((landed - voxels).astype(np.float32))[None]),))


def write_learn2reg(path: str | Path, transform: Transform, fixed: Grid, moving: Grid) -> None:
    """Write (i, j, k, 3) float32 as ``.npz`` or ``.nii.gz``, the layout since 2022."""
    path = Path(path)
    vectors = np.ascontiguousarray(np.moveaxis(transform.ddf(fixed, moving)[0].numpy(), 0, -1))
    if path.suffix.lower() == ".npz":
        atomic_write(path, lambda stream: np.savez_compressed(stream, vectors))
        return
    save_nifti(path, nib.Nifti1Image(vectors, affine4(fixed)))
