"""Transforms as ITK, ANTs, SimpleITK, elastix and 3D Slicer keep them: LPS millimetres, from fixed to moving world.

In a composite file the parts stand as ITK keeps them: the last one in the list takes a fixed point first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from torch import Tensor

from ..errors import InputError
from .grid import Grid, lps, spatial
from .images import affine4, grid_of_itk, itk_image, save_nifti, write_itk_image
from .itk_readers import read_plain_transform
from .transform import Affine, Displacement, Transform
from .vectors import field_in_voxels, vectors_in_mm

__all__ = ["read_itk_displacement", "read_itk_transform", "read_vector_nifti", "write_itk_displacement"]

_RAS_VECTORS = 1006  # the NIfTI intent "displacement", which ITK 5.3 and newer turn from RAS to LPS; 1007 they do not


def _affine_from_lps(matrix: np.ndarray) -> Affine:
    frame = lps(len(matrix) - 1)
    return Affine(frame @ matrix @ frame)


# -- transform files ---------------------------------------------------------------------------------------------------


def read_itk_transform(path: str | Path) -> Transform:
    """Read ``.h5``, ``.tfm``, ``.txt`` or ``.mat``: affine and rigid kinds, displacement fields, composites of them.

    Raises:
        InputError: not a transform file, or one with a part of another kind.
    """
    path = Path(path)
    plain = read_plain_transform(path)
    if plain is not None:
        return plain
    import itk

    try:
        found = itk.transformread(str(path))
    except RuntimeError as error:
        raise InputError(f"{path}: not readable as a transform ({_reason(error)}); expected an ITK file") from error
    # A file that lists several without a composite keeps them in the same order as a composite does.
    parts = [part for transform in reversed(list(found)) for part in _parts(path, transform)]
    if not parts:
        raise InputError(f"{path}: found no transform in the file, expected one or more")
    return Transform(tuple(parts))


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:160] if lines else type(error).__name__


def _parts(path: Path, transform: Any) -> list[Affine | Displacement]:
    """Return the parts of an ITK transform in the order in which a fixed point meets them."""
    import itk

    name = transform.GetTransformTypeAsString()
    if "Composite" in name:
        count = range(transform.GetNumberOfTransforms() - 1, -1, -1)
        return [part for i in count for part in _parts(path, itk.down_cast(transform.GetNthTransform(i)))]
    if name.startswith("DisplacementFieldTransform"):
        field = transform.GetDisplacementField()
        grid = grid_of_itk(field)
        vectors = _ij_order(np.asarray(itk.array_from_image(field)))
        return [field_in_voxels(path, vectors, grid, from_lps=True)]
    if not transform.IsLinear():
        raise InputError(
            f"{path}: found a {name.split('_')[0]}, expected affine, rigid or displacement field transforms; "
            "3D Slicer, SimpleITK's TransformToDisplacementFieldFilter or transformix turn it into a displacement field"
        )
    d = transform.GetInputSpaceDimension()
    origin = np.array(transform.TransformPoint([0.0] * d))
    matrix = np.eye(d + 1)
    matrix[:d, d] = origin
    for axis in range(d):
        matrix[:d, axis] = np.array(transform.TransformPoint([float(axis == a) for a in range(d)])) - origin
    return [_affine_from_lps(matrix)]


def _ij_order(vectors: np.ndarray) -> np.ndarray:
    d = vectors.ndim - 1
    return vectors.transpose((*reversed(range(d)), d))


# -- displacement images -----------------------------------------------------------------------------------------------


def read_itk_displacement(path: str | Path) -> Transform:
    """Read a vector image ``.nrrd``, ``.mha`` or ``.mhd`` in LPS millimetres as a displacement field.

    Raises:
        InputError: not readable, or not as many components as dimensions.
    """
    import itk

    path = Path(path)
    try:
        image = itk.imread(str(path))
    except RuntimeError as error:
        raise InputError(f"{path}: not readable as a transform ({_reason(error)}); expected a vector image") from error
    grid, count = grid_of_itk(image), int(image.GetNumberOfComponentsPerPixel())
    if count != len(grid.shape):
        raise InputError(
            f"{path}: found an image with {count} components in {len(grid.shape)}D, expected a displacement field "
            "with one component a dimension"
        )
    vectors = _ij_order(np.asarray(itk.array_from_image(image), dtype=np.float64))
    return Transform((field_in_voxels(path, vectors, grid, from_lps=True),))


def read_vector_nifti(path: Path, image: Any) -> Transform:
    """Read a NIfTI of shape (i, j, k, 1, d): LPS millimetres, or RAS ones under the intent "displacement" (1006)."""
    d = image.shape[4]
    shape = image.shape[:d]
    affine = np.asarray(image.affine, dtype=np.float64)
    if image.shape[3] != 1 or d not in (2, 3) or (d == 2 and image.shape[2] != 1):
        raise InputError(f"{path}: found a vector image of shape {image.shape}, expected (i, j, k, 1, d)")
    vectors = np.asarray(image.dataobj, dtype=np.float64).reshape(*shape, d)
    grid = Grid(tuple(int(n) for n in shape), spatial(affine, d))
    from_lps = int(image.header["intent_code"]) != _RAS_VECTORS
    return Transform((field_in_voxels(path, vectors, grid, from_lps),))


def write_itk_displacement(path: str | Path, fixed_ddf: Tensor, fixed: Grid) -> None:
    """Write a field as the displacement image that ITK, ANTs and 3D Slicer read: LPS millimetres on the fixed grid.

    Args:
        path: ``.nii`` or ``.nii.gz`` (vector NIfTI, intent 1007, shape (i, j, k, 1, d)), ``.nrrd`` or ``.mha``.
        fixed_ddf: (1, d, *S) in fixed voxels.
        fixed: its grid.
    """
    path = Path(path)
    d = len(fixed.shape)
    vectors = vectors_in_mm(fixed_ddf, fixed, to_lps=True)
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        write_itk_image(path, itk_image(vectors, fixed, components=True))
        return
    vectors = vectors.reshape(*fixed.shape, *[1] * (4 - d), d, order="F")
    image = nib.Nifti1Image(vectors, affine4(fixed))
    image.header.set_intent("vector")
    image.header.set_xyzt_units("mm")
    image.set_qform(affine4(fixed), code=1)
    save_nifti(path, image)
