"""NiftyReg's files: for each reference voxel its place in the floating world, RAS millimetres; 4 x 4 affines as text.

``reference`` is our fixed, ``floating`` our moving image. Layout as in NiftyReg's sources (Modat et al., Comput. Meth.
Prog. Biomed. 2010): vector NIfTI of shape (i, j, k, 1, d), intent 1007 named ``NREG_TRANS``, the kind in ``intent_p1``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ..errors import InputError
from ..files import atomic_write
from .grid import Grid, spatial
from .images import affine4, save_nifti
from .transform import Affine, Transform
from .vectors import field_in_voxels, vectors_in_mm

__all__ = ["is_niftyreg", "read_niftyreg", "read_niftyreg_affine", "write_niftyreg", "write_niftyreg_affine"]

_NAME = "NREG_TRANS"
_DEFORMATION, _DISPLACEMENT = 0, 1
_KINDS = {2: "cubic spline grid", 3: "velocity field", 4: "velocity field", 5: "spline velocity grid", 6: "spline grid"}


def is_niftyreg(header: Any) -> bool:
    """Tell whether a NIfTI header is one of NiftyReg's transforms."""
    return str(header.get_intent()[2]).startswith(_NAME)


def read_niftyreg(path: Path, image: Any) -> Transform:
    """Read a deformation (absolute positions) or displacement field.

    Raises:
        InputError: a spline or velocity grid, a shape that is no field, or NaN positions.
    """
    kind = int(image.header["intent_p1"])
    if kind not in (_DEFORMATION, _DISPLACEMENT):
        raise InputError(
            f"{path}: found a NiftyReg {_KINDS.get(kind, 'transform of unknown kind')}, expected a deformation field; "
            f"reg_transform -ref FIXED -def {path.name} OUT.nii.gz makes one of it"
        )
    d = image.shape[4] if len(image.shape) == 5 else 0
    if d not in (2, 3) or image.shape[3] != 1 or (d == 2 and image.shape[2] != 1):
        raise InputError(f"{path}: found a NiftyReg field of shape {image.shape}, expected (i, j, k, 1, d)")
    grid = Grid(tuple(int(n) for n in image.shape[:d]), spatial(np.asarray(image.affine, np.float64), d))
    vectors = np.asarray(image.dataobj, dtype=np.float64).reshape(*grid.shape, d)
    if kind == _DEFORMATION:
        vectors = vectors - _positions(grid)
    return Transform((field_in_voxels(path, vectors, grid, from_lps=False),))


def _positions(grid: Grid) -> np.ndarray:
    """Return the world points (*S, d) of a grid's voxels, RAS millimetres."""
    voxels = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), -1)
    return voxels @ grid.affine[:-1, :-1].T + grid.affine[:-1, -1]


def write_niftyreg(path: str | Path, transform: Transform, fixed: Grid) -> None:
    """Write a deformation field ``.nii`` or ``.nii.gz`` on the fixed grid."""
    d = transform.dims
    vectors = vectors_in_mm(transform.displacement(fixed).ddf, fixed, to_lps=False) + _positions(fixed)
    vectors = vectors.astype(np.float32).reshape(*fixed.shape, *[1] * (4 - d), d)
    image = nib.Nifti1Image(vectors, affine4(fixed))
    image.header.set_intent("vector", name=_NAME)
    image.header["intent_p1"] = _DEFORMATION
    image.header.set_xyzt_units("mm")
    image.set_qform(affine4(fixed), code=1)
    save_nifti(path, image)


def read_niftyreg_affine(path: Path, spatial_dims: int | None = None) -> Transform:
    """Read a 4 x 4 matrix as text, from reference to floating world in RAS millimetres; for 2D images its upper part.

    Raises:
        InputError: not such a matrix.
    """
    try:
        matrix = np.loadtxt(path, dtype=np.float64, ndmin=2)
    except (ValueError, OSError) as error:
        matrix = np.full((0, 0), np.nan)
        cause: Exception | None = error
    else:
        cause = None
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.allclose(matrix[3], [0, 0, 0, 1]):
        raise InputError(
            f"{path}: not readable as a transform; expected ITK's text (first line '#Insight Transform File V1.0') or "
            "NiftyReg's affine (4 lines of 4 numbers, the last 0 0 0 1)"
        ) from cause
    return Transform((Affine(spatial(matrix, spatial_dims or 3)),))


def write_niftyreg_affine(path: str | Path, transform: Transform) -> None:
    """Write one affine as a 4 x 4 matrix; a 2D one gets an untouched third axis.

    Raises:
        InputError: the transform has a displacement.
    """
    if transform.affine is None:
        raise InputError(f"{path}: found a displacement field, expected an affine; write it as .nii.gz")
    d = transform.dims
    matrix = np.eye(4)
    matrix[:d, :d], matrix[:d, 3] = transform.affine.matrix[:d, :d], transform.affine.matrix[:d, d]
    text = "\n".join(" ".join(repr(float(v)) for v in row) for row in matrix) + "\n"
    atomic_write(path, lambda stream: stream.write(text.encode()))
