"""Transform files as ITK, ANTs and SimpleITK write them, without ITK, whose classes take seconds to load.

Known are linear kinds, displacement fields and composites of them; what else a file may hold is ITK's to read
(:func:`shared.transform_io.itk_files.read_itk_transform`). Parameters are LPS millimetres, from fixed to moving world.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError
from .grid import Grid, lps
from .itk_linear import LINEAR
from .transform import Affine, Displacement, Transform
from .vectors import field_in_voxels

__all__ = ["read_plain_transform"]

_NOTHING = np.zeros(0)
_NAME = re.compile(r"(?P<kind>\w+)_(float|double)_(?P<dims>[23])_(?P=dims)")
_COMPOSITE, _FIELD = "CompositeTransform", "DisplacementFieldTransform"


class _Record(NamedTuple):
    """One transform of a file: ITK's name for it, such as ``AffineTransform_double_3_3``, and its numbers."""

    name: str
    parameters: np.ndarray = _NOTHING
    fixed: np.ndarray = _NOTHING

    @property
    def kind(self) -> tuple[str, int]:
        """Its class and dimensions; 0 dimensions where the name is none of ours."""
        found = _NAME.fullmatch(self.name)
        return (found["kind"], int(found["dims"])) if found else (self.name, 0)


def read_plain_transform(path: Path) -> Transform | None:
    """Read ``.h5``, ``.tfm``, ``.txt`` or ``.mat``; None where a part is of a kind that is left to ITK.

    Raises:
        InputError: not such a file, no transform in it, or numbers that make no transform.
    """
    reader = {".h5": _from_hdf5, ".hdf5": _from_hdf5, ".mat": _from_mat}.get(path.suffix.lower(), _from_text)
    try:
        records = reader(path)
    except Exception as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(f"{path}: not readable as a transform ({reason}); expected an ITK file") from error
    # A composite stands first and alone, and names what follows as its parts.
    if records and records[0].kind[0] == _COMPOSITE:
        records = records[1:]
    if not records:
        raise InputError(f"{path}: found no transform in the file, expected one or more")
    if not all(record.kind in LINEAR or record.kind in ((_FIELD, 2), (_FIELD, 3)) for record in records):
        return None
    return Transform(tuple(_part(path, record) for record in reversed(records)))


# -- files as records --------------------------------------------------------------------------------------------------


def _from_hdf5(path: Path) -> list[_Record]:
    import h5py

    with h5py.File(path, "r") as file:
        group = file["TransformGroup"]
        return [_hdf5_record(group[str(number)]) for number in range(len(group))]


def _hdf5_record(group: Any) -> _Record:
    # Older ITK left out the "s".
    numbers = [
        next((group[name][...].ravel() for name in (f"Transform{word}", f"Tranform{word}") if name in group), _NOTHING)
        for word in ("Parameters", "FixedParameters")
    ]
    return _Record(str(group["TransformType"].asstr()[...].item()), *numbers)


def _from_text(path: Path) -> list[_Record]:
    records: list[_Record] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = (word.strip() for word in line.partition(":"))
        if not key or key.startswith("#"):
            continue
        if key == "Transform":
            records.append(_Record(value))
        elif records and key in ("Parameters", "FixedParameters"):
            numbers = np.array(value.split(), dtype=np.float64)
            last = records[-1]
            records[-1] = last._replace(parameters=numbers) if key == "Parameters" else last._replace(fixed=numbers)
        else:
            records.append(_Record(key))  # no name of ours: ITK shall say what it is
    return records


def _from_mat(path: Path) -> list[_Record]:
    """Read one transform, as ANTs' ``0GenericAffine.mat`` holds it; several come as names alone, for ITK to read."""
    from scipy.io import loadmat, whosmat

    names = [name for name, *_ in whosmat(path)]
    if len(names) != 2 or "fixed" not in names:
        return [_Record(name) for name in names]
    numbers = {name: np.ravel(value) for name, value in loadmat(path).items() if name in names}
    fixed = numbers.pop("fixed")
    return [_Record(name, parameters, fixed) for name, parameters in numbers.items()]


# -- records as parts --------------------------------------------------------------------------------------------------


def _part(path: Path, record: _Record) -> Affine | Displacement:
    kind, d = record.kind
    try:
        read = _field(record, d) if kind == _FIELD else _matrix(record, kind, d)
    except ValueError as error:
        raise InputError(f"{path}: not readable as a transform ({kind}: {error}); expected an ITK file") from error
    if isinstance(read, Affine):
        return read
    return field_in_voxels(path, *read, from_lps=True)


def _matrix(record: _Record, kind: str, d: int) -> Affine:
    matrix = LINEAR[kind, d](record.parameters.astype(np.float64), record.fixed.astype(np.float64), d)
    if not np.isfinite(matrix).all():
        raise ValueError("found NaN or infinite parameters, expected finite ones")
    return Affine(lps(d) @ matrix @ lps(d))


def _field(record: _Record, d: int) -> tuple[np.ndarray, Grid]:
    """Return vectors (*S, d) in LPS millimetres, in the file x fastest, and their grid: fixed are its numbers."""
    if len(record.fixed) != d * (d + 3):
        raise ValueError(f"found {len(record.fixed)} numbers of a lattice, expected {d * (d + 3)}")
    fixed = record.fixed.astype(np.float64)
    size, origin, spacing = fixed[: 3 * d].reshape(3, d)
    direction = fixed[3 * d :].reshape(d, d)
    if not np.isfinite(fixed).all() or size.min() < 1 or spacing.min() <= 0 or abs(np.linalg.det(direction)) < 1e-6:
        raise ValueError(f"found size, origin, spacing and direction {fixed.tolist()}, expected a lattice")
    matrix = np.eye(d + 1)
    matrix[:d, :d], matrix[:d, d] = direction * spacing, origin
    shape = tuple(int(n) for n in size)
    if len(record.parameters) != d * np.prod(shape):
        raise ValueError(f"found {len(record.parameters)} parameters, expected {d} for each of {shape} voxels")
    vectors = record.parameters.reshape(*reversed(shape), d).transpose((*reversed(range(d)), d))
    return vectors, Grid(shape, lps(d) @ matrix)
