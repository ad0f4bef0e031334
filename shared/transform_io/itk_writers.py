"""Transform files as ITK writes them, without ITK: its field classes take longer to load than a pair to register.

``.h5`` holds any chain of parts, ``.txt``, ``.tfm`` and ``.mat`` one affine. Parameters are LPS millimetres, from fixed
to moving world; in a composite the last part takes a fixed point first, as in ITK.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..files import atomic_write
from .grid import lps
from .transform import Affine, Displacement, Transform
from .vectors import vectors_in_mm

__all__ = ["write_itk_transform"]


def write_itk_transform(path: str | Path, transform: Transform) -> None:
    """Write ``.h5`` (any transform), or ``.mat``, ``.txt`` or ``.tfm`` (one affine), as ITK and ANTs read them.

    Raises:
        InputError: a displacement for a format that holds affines, or a folder that cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    affine = transform.affine
    if suffix != ".h5" and affine is None:
        raise InputError(f"{path}: found a displacement field, expected an affine; write it as .h5 or .nii.gz")
    if suffix == ".h5":
        content = _hdf5(transform)
    elif affine is not None:
        content = _mat(affine) if suffix == ".mat" else _text(affine)
    atomic_write(path, lambda stream: stream.write(content))


def _affine_parameters(affine: Affine) -> tuple[str, np.ndarray, np.ndarray]:
    """Return ITK's name, the matrix row by row and the translation, and the centre."""
    d = affine.dims
    matrix = lps(d) @ affine.matrix @ lps(d)
    return f"AffineTransform_double_{d}_{d}", np.concatenate([matrix[:d, :d].ravel(), matrix[:d, d]]), np.zeros(d)


def _field_parameters(part: Displacement) -> tuple[str, np.ndarray, np.ndarray]:
    """Return ITK's name, the vectors with x fastest, and size, origin, spacing and direction."""
    d = part.dims
    matrix = lps(d) @ part.grid.affine
    spacing = np.linalg.norm(matrix[:d, :d], axis=0)
    lattice = np.concatenate([part.grid.shape, matrix[:d, d], spacing, (matrix[:d, :d] / spacing).ravel()])
    vectors = vectors_in_mm(part.ddf, part.grid, to_lps=True)
    return f"DisplacementFieldTransform_double_{d}_{d}", vectors.transpose((*reversed(range(d)), d)).ravel(), lattice


def _hdf5(transform: Transform) -> bytes:
    """Return the groups that ITK's HDF5TransformIO looks for; fields in single precision, which it makes double.

    Not deflated: that saves a quarter of a field's size and takes as long as to find it. Made in memory: on a full disk
    the HDF5 library ends the process.
    """
    import h5py

    parts = [_affine_parameters(p) if isinstance(p, Affine) else _field_parameters(p) for p in transform.parts]
    text = h5py.string_dtype("ascii")
    with h5py.File("transform.h5", "w", driver="core", backing_store=False, block_size=1 << 24) as file:
        group = file.create_group("TransformGroup")
        if len(parts) > 1:
            d = transform.dims
            group.create_dataset("0/TransformType", data=[f"CompositeTransform_double_{d}_{d}"], dtype=text)
        for number, (name, parameters, fixed) in enumerate(reversed(parts), start=int(len(parts) > 1)):
            part = group.create_group(str(number))
            part.create_dataset("TransformType", data=[name], dtype=text)
            part.create_dataset("TransformFixedParameters", data=fixed.astype(np.float64))
            part.create_dataset("TransformParameters", data=parameters)
        file.flush()
        content: bytes = file.id.get_file_image()
    return content


def _text(affine: Affine) -> bytes:
    name, *numbers = _affine_parameters(affine)
    parameters, fixed = (" ".join(map(repr, values.tolist())) for values in numbers)
    head = "#Insight Transform File V1.0\n#Transform 0\n"
    return f"{head}Transform: {name}\nParameters: {parameters}\nFixedParameters: {fixed}\n".encode()


def _mat(affine: Affine) -> bytes:
    from scipy.io import savemat

    name, parameters, fixed = _affine_parameters(affine)
    stream = io.BytesIO()
    savemat(stream, {name: parameters[:, None], "fixed": fixed[:, None]}, format="4")
    return stream.getvalue()
