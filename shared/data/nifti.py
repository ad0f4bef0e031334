"""NIfTI headers: size, voxel spacing and the frame in millimetres, and where programs disagree about it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.openers import ImageOpener

from ..errors import InputError

__all__ = ["is_nifti", "nifti_header", "reason", "warn_of_frames"]

_NIFTI = (".nii", ".nii.gz")
# NIfTI's codes for metres and microns; no unit at all is taken for millimetres, as ITK does.
_MILLIMETRES = {1: 1000.0, 3: 0.001}
# Two frames of one header agree where no corner is farther off than this share of the smallest voxel length.
_AGREE = 0.05
_SCANNER = 1  # the only code under which ITK prefers an sform to a qform


def is_nifti(path: Path) -> bool:
    """Tell by the suffix whether a file is NIfTI."""
    return path.name.lower().endswith(_NIFTI)


def reason(error: BaseException) -> str:
    """Return kind and first line of an error."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:120]}" if text else type(error).__name__


def nifti_header(path: Path) -> tuple[tuple[int, ...], np.ndarray, list[float]]:
    """Return shape, 4 x 4 affine to RAS and voxel spacing, both in mm whatever the header's unit of length.

    Raises:
        InputError: not a NIfTI file.
    """
    try:
        header = nib.load(path)
        with ImageOpener(path) as stream:
            # As written: nibabel's own check turns a spacing of zero into one.
            raw = type(header.header).from_fileobj(stream, check=False)
        affine = np.array(header.affine, float)
        unit = _MILLIMETRES.get(int(raw["xyzt_units"]) & 7, 1.0)
        affine[:3] *= unit
        return tuple(header.shape), affine, [unit * abs(float(z)) for z in raw["pixdim"][1:4]]
    except Exception as error:
        raise InputError(f"{path}: not readable as an image ({reason(error)}); expected a NIfTI file") from error


def warn_of_frames(path: Path) -> None:
    """Warn where a file's header holds two frames that differ, or none."""
    image = nib.load(path)
    said = _frames(image)
    if said:
        warnings.warn(f"{path}: {said}", stacklevel=4)


def _frames(image: Any) -> str:
    """Return what is unclear about the frame of a NIfTI image, or ""."""
    header = image.header
    (sform, s_code), (qform, q_code) = header.get_sform(coded=True), header.get_qform(coded=True)
    if sform is None and qform is None:
        return (
            "found a header without a frame (sform and qform codes are 0); the image's centre is taken for the origin "
            "and the first axis for right to left, while ITK and ANTs take the first voxel for the origin and the "
            "second axis for front to back as well: transforms of this image fit there only after its header is set"
        )
    if sform is None or qform is None:
        return ""
    shape = (*image.shape, 1, 1)[:3]
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in shape], [1], indexing="ij")).reshape(4, -1)
    off = float(np.linalg.norm(((sform - qform) @ corners)[:3], axis=0).max())
    if off <= _AGREE * float(np.linalg.norm(sform[:3, :3], axis=0).min()):
        return ""
    theirs = "take it too" if int(s_code) == _SCANNER else "take the qform: transforms of this image do not fit there"
    return (
        f"found a qform (code {int(q_code)}) and an sform (code {int(s_code)}) that differ by up to {off:.3g} of its "
        f"units; the sform is taken, ITK and ANTs {theirs}"
    )
