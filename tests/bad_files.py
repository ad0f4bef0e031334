"""Files that no program should accept, by name: how to write each, and what the message must say."""

from __future__ import annotations

import struct
from pathlib import Path

import nibabel as nib
import numpy as np

from tests.learn2reg_folder import SIZE, blobs, save


def truncated(path: Path) -> None:
    save(path, blobs())
    path.write_bytes(path.read_bytes()[:-200])


def patched(path: Path, offset: int, *values: float) -> None:
    """Overwrite floats of a NIfTI header: nibabel itself writes no impossible ones."""
    plain = save(path.with_name("plain.nii"), blobs())
    content = bytearray(plain.read_bytes())
    content[offset : offset + 4 * len(values)] = struct.pack(f"<{len(values)}f", *values)
    plain.write_bytes(bytes(content))
    with nib.openers.Opener(str(path), "wb") as stream:
        stream.write(plain.read_bytes())


def holding(value: float):
    def write(path: Path) -> None:
        image = blobs()
        image[3, 3, 3] = value
        save(path, image)

    return write


BAD_IMAGES = {
    "missing": (lambda path: None, "no such image file; expected an existing NIfTI"),
    "truncated": (truncated, r"voxels cannot be read \(.*expected a complete image file"),
    "empty file": (lambda path: path.touch(), r"not readable as an image \(.*expected a NIfTI file"),
    "text": (lambda path: path.write_text("not an image"), r"not readable as an image \(.*expected a NIfTI file"),
    "2D": (lambda path: save(path, blobs((9, 9))), r"found a 2D image of shape \(9, 9\), expected 3D"),
    "one slice": (lambda path: save(path, blobs((9, 9, 1))), r"found a 2D image \(shape \(9, 9, 1\)\), expected 3D"),
    "4D": (
        lambda path: save(path, np.stack([blobs(), blobs(seed=1)], -1)),
        r"found a 4D image of shape \(10, 11, 12, 2\), expected 3D; pick one time frame or channel",
    ),
    "NaN": (holding(np.nan), "found 1 NaN or infinite voxels, expected finite"),
    "infinite": (holding(np.inf), "found 1 NaN or infinite voxels, expected finite"),
    "complex": (lambda path: save(path, blobs().astype(np.complex64)), "complex64 voxels .* expected one real channel"),
    "constant": (
        lambda path: save(path, np.full(SIZE, 7, np.float32)),
        "found the constant value 7, expected an image with contrast",
    ),
    "zero spacing": (
        lambda path: patched(path, 84, 0.0),
        r"found voxel spacing \[2\.0, 0\.0, 2\.0\] mm, expected every spacing above zero",
    ),
    "singular affine": (
        lambda path: patched(path, 296, 2.0, 0.0, 0.0, 0.0),
        r"found a singular affine \[\[2\.0, 0\.0, 0\.0, 0\.0\], \[2\.0.*expected an invertible one",
    ),
    "affine of NaN": (lambda path: patched(path, 280, np.nan), "found a singular affine"),
}

LABEL = np.digitize(blobs(), [50]).astype(np.uint8)
BAD_LABELS = {
    "missing": (lambda path, role: None, "no such {role} file"),
    "another size": (
        lambda path, role: save(path, LABEL[:-1]),
        r"found a {role} of size \(9, 11, 12\), expected its image's size \(10, 11, 12\)",
    ),
    "fractional": (lambda path, role: save(path, LABEL * 0.5), "found fractional values in .* expected whole numbers"),
    "negative": (
        lambda path, role: save(path, -LABEL.astype(np.int16)),
        r"found {role} values -1\.\.0, expected 0\.\.",
    ),
    "truncated": (lambda path, role: truncated(path), "voxels cannot be read"),
}
