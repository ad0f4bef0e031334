"""One reader and one writer for every kind of transform file, told apart by suffix and header."""

from __future__ import annotations

import zlib
from pathlib import Path

import nibabel as nib
from nibabel.filebasedimages import ImageFileError

from ..errors import InputError, did_you_mean
from .grid import Grid
from .itk_files import read_itk_displacement, read_itk_transform, read_vector_nifti, write_itk_displacement
from .itk_writers import write_itk_transform
from .learn2reg import read_learn2reg, write_learn2reg
from .niftyreg import is_niftyreg, read_niftyreg, read_niftyreg_affine, write_niftyreg, write_niftyreg_affine
from .transform import Transform

__all__ = ["TRANSFORM_FORMATS", "NeedsGridsError", "read_transform", "write_transform"]

_NIFTI, _VECTOR_IMAGE = (".nii", ".nii.gz"), (".nrrd", ".mha", ".mhd")
_ITK = (".h5", ".hdf5", ".tfm", ".mat", ".txt")
_READABLE = (*_ITK, *_NIFTI, *_VECTOR_IMAGE, ".npz")

TRANSFORM_FORMATS = {
    "itk": (".h5", ".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".mat", ".txt", ".tfm"),
    "niftyreg": (".nii.gz", ".nii", ".txt"),
    "learn2reg": (".npz", ".nii.gz", ".nii"),
}


class NeedsGridsError(InputError):
    """A field that counts voxels was read without the grids of both its images."""


def _suffix(path: Path, known: tuple[str, ...]) -> str:
    name = path.name.lower()
    return next((suffix for suffix in sorted(known, key=len, reverse=True) if name.endswith(suffix)), "")


def read_transform(
    path: str | Path, spatial_dims: int | None = None, fixed: Grid | None = None, moving: Grid | None = None
) -> Transform:
    """Read a transform of any known kind; what it is follows from suffix and header.

    ``.h5``, ``.tfm``, ``.mat``, ``.txt``: ITK's and ANTs' transforms; ``.txt`` also NiftyReg's 4 x 4 affine.
    ``.nii.gz`` of shape (i, j, k, 1, d): NiftyReg's field if it says so, else ITK's displacement; of shape
    (i, j, k, 3): Learn2Reg's. ``.nrrd``, ``.mha``: ITK's displacement. ``.npz``: Learn2Reg's.

    Args:
        path: the file.
        spatial_dims: what the transform must have; None takes any.
        fixed: grid of the fixed image; Learn2Reg's files need it.
        moving: grid of the moving image; Learn2Reg's files need it.

    Raises:
        InputError: missing, unreadable, of an unknown kind, or of other dimensions.
        NeedsGridsError: a Learn2Reg field without both grids.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such transform file; expected one of {', '.join(_READABLE)}")
    suffix = _suffix(path, _READABLE)
    if suffix in _NIFTI:
        transform = _read_nifti(path, fixed, moving)
    elif suffix in _VECTOR_IMAGE:
        transform = read_itk_displacement(path)
    elif suffix == ".npz":
        transform = _read_learn2reg(path, fixed, moving)
    elif suffix == ".txt" and not path.read_bytes()[:64].lstrip().startswith(b"#Insight"):
        transform = read_niftyreg_affine(path, spatial_dims)
    elif suffix:
        transform = read_itk_transform(path)
    else:
        raise InputError(
            f"{path}: unknown transform suffix {path.suffix!r}, expected one of {', '.join(_READABLE)}; "
            "to read a registration of another program, save it as one of these"
        )
    if spatial_dims is not None and transform.dims != spatial_dims:
        raise InputError(f"{path}: found a {transform.dims}D transform, expected {spatial_dims}D as the images are")
    return transform


def _read_nifti(path: Path, fixed: Grid | None, moving: Grid | None) -> Transform:
    try:
        image = nib.load(path)
        if is_niftyreg(image.header):
            return read_niftyreg(path, image)
        if len(image.shape) == 5:
            return read_vector_nifti(path, image)
        if image.shape[-1] in (2, 3) and len(image.shape) == image.shape[-1] + 1:
            return _read_learn2reg(path, fixed, moving)
    except (OSError, EOFError, zlib.error, ImageFileError) as error:
        raise InputError(f"{path}: not readable as a transform ({type(error).__name__}); expected a field") from error
    raise InputError(
        f"{path}: found an image of shape {image.shape}, expected a field of shape (i, j, k, 1, 3) as ITK and NiftyReg "
        "write it, or (i, j, k, 3) as Learn2Reg does"
    )


def _read_learn2reg(path: Path, fixed: Grid | None, moving: Grid | None) -> Transform:
    if fixed is None or moving is None:
        raise NeedsGridsError(
            f"{path}: found a Learn2Reg field, which holds voxels and no world; expected the grids of both its images "
            "(for apply: --reference and --onto)"
        )
    return read_learn2reg(path, fixed, moving)


def write_transform(
    path: str | Path, transform: Transform, fixed: Grid | None = None, moving: Grid | None = None, form: str = ""
) -> None:
    """Write a transform in a form that another program reads.

    Args:
        path: the suffix chooses the kind: ``.h5`` keeps all parts; ``.mat``, ``.txt`` and ``.tfm`` hold one affine;
            images and ``.npz`` hold the whole map as one field on the fixed grid.
        transform: fixed to moving world.
        fixed: grid of the fixed image; fields need it.
        moving: grid of the moving image; Learn2Reg's need it.
        form: "itk", "niftyreg" or "learn2reg"; by default "learn2reg" for ``.npz``, else "itk".

    Raises:
        InputError: unknown form or suffix, a missing grid, a field where an affine is expected, unwritable folder.
    """
    path = Path(path)
    form = form or ("learn2reg" if path.name.lower().endswith(".npz") else "itk")
    if form not in TRANSFORM_FORMATS:
        raise InputError(
            f"found the transform format {form!r}{did_you_mean(form, TRANSFORM_FORMATS)}, "
            f"expected one of {', '.join(TRANSFORM_FORMATS)}"
        )
    suffix = _suffix(path, TRANSFORM_FORMATS[form])
    if not suffix:
        listed = ", ".join(TRANSFORM_FORMATS[form])
        raise InputError(f"{path}: unknown suffix {path.suffix!r} for a {form} transform, expected one of {listed}")
    if form == "itk" and suffix in _ITK:
        write_itk_transform(path, transform)
    elif form == "niftyreg" and suffix == ".txt":
        write_niftyreg_affine(path, transform)
    elif fixed is None or (form == "learn2reg" and moving is None):
        raise InputError(f"{path}: a field needs the grid of the fixed image, and for Learn2Reg of the moving one too")
    elif form == "niftyreg":
        write_niftyreg(path, transform, fixed)
    elif form == "learn2reg" and moving is not None:
        write_learn2reg(path, transform, fixed, moving)
    else:
        write_itk_displacement(path, transform.displacement(fixed).ddf, fixed)
