"""Point files: which frame their numbers are in, and how the same file looks with other points.

==========  ==========================================================================================================
``.csv``    without a header: voxels, as Learn2Reg's keypoints; header ``i,j,k``: voxels; header ``x,y,z,...``: LPS
            millimetres, as ANTs' point files. Other columns are kept.
``.pts``    elastix: first line ``point`` (LPS millimetres) or ``index`` (voxels), then how many, then the points.
``.fcsv``   3D Slicer's fiducials: RAS or LPS millimetres, as the header says. Labels are kept.
==========  ==========================================================================================================
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..files import atomic_write
from .grid import Grid, lps

__all__ = ["POINT_SUFFIXES", "PointFile", "is_point_file", "read_point_file", "write_point_file"]

POINT_SUFFIXES = (".csv", ".pts", ".fcsv")
_SLICER = "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"
_SLICER_FRAMES = {"ras": "RAS", "0": "RAS", "lps": "LPS", "1": "LPS"}


@dataclass(frozen=True)
class PointFile:
    """What a point file holds.

    Args:
        path: where it was read.
        points: (N, d) as they stand in the file.
        frame: "voxels", "RAS" or "LPS" (millimetres).
        head: lines before the points, without line ends.
        rows: the cells of each point's line.
        columns: which cells are the coordinates.
    """

    path: Path
    points: np.ndarray
    frame: str
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = field(default=(), repr=False)
    columns: Sequence[int] = ()

    def world(self, grid: Grid | None) -> Tensor:
        """Return (N, d) in RAS millimetres, float64.

        Args:
            grid: of the image that the points lie in; only voxels need it.

        Raises:
            InputError: voxels and no grid, or millimetres of space for a slice that is tilted in it.
        """
        _check_plane(self.path, self.frame, grid)
        points = torch.from_numpy(self.points)
        if self.frame == "voxels":
            if grid is None:
                raise InputError(f"{self.path}: found points in voxels, expected the image that they lie in as well")
            return grid.to_world(points)
        return points if self.frame == "RAS" else points @ torch.from_numpy(_flip(points.shape[1]))


def _check_plane(path: Path, frame: str, grid: Grid | None) -> None:
    if frame != "voxels" and grid is not None and grid.plane is not None and grid.plane.tilted:
        raise InputError(
            f"{path}: found points in {frame} millimetres for a single slice that does not lie in the plane x, y; "
            "expected its voxels (a .csv with the columns i,j)"
        )


def _flip(dims: int) -> np.ndarray:
    return lps(dims)[:dims, :dims]


def is_point_file(path: str | Path) -> bool:
    """Tell by the suffix whether a file holds points."""
    return Path(path).name.lower().endswith(POINT_SUFFIXES)


def read_point_file(path: str | Path, spatial_dims: int) -> PointFile:
    """Read ``.csv``, ``.pts`` or ``.fcsv``.

    Raises:
        InputError: missing, no points, an unknown header, too few columns, or anything but finite numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such point file; expected one of {', '.join(POINT_SUFFIXES)}")
    readers = {".csv": _read_csv, ".pts": _read_pts, ".fcsv": _read_fcsv}
    if path.suffix.lower() not in readers:
        raise InputError(
            f"{path}: unknown suffix {path.suffix!r} for points, expected one of {', '.join(POINT_SUFFIXES)}"
        )
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as points ({error}); expected text") from error
    return readers[path.suffix.lower()](path, lines, spatial_dims)


def _numbers(path: Path, rows: Sequence[Sequence[str]], columns: Sequence[int]) -> np.ndarray:
    if not rows:
        raise InputError(f"{path}: found no point, expected one or more")
    try:
        points = np.array([[float(row[c]) for c in columns] for row in rows])
    except (ValueError, IndexError) as error:
        raise InputError(f"{path}: not readable as points ({error}); expected {len(columns)} numbers a line") from error
    if not np.isfinite(points).all():
        raise InputError(f"{path}: found NaN or infinite coordinates, expected finite numbers")
    return points


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_csv(path: Path, lines: list[str], d: int) -> PointFile:
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines)]
    if not rows or all(_is_number(cell) for cell in rows[0]):
        if rows and {len(row) for row in rows} != {d}:
            raise InputError(
                f"{path}: found {sorted({len(row) for row in rows})} columns and no header, expected {d} (voxels)"
            )
        return PointFile(path, _numbers(path, rows, range(d)), "voxels", (), rows, range(d))
    names = [cell.lower() for cell in rows[0]]
    for frame, wanted in (("voxels", "ijk"[:d]), ("LPS", "xyz"[:d])):
        if all(name in names for name in wanted):
            columns = [names.index(name) for name in wanted]
            return PointFile(path, _numbers(path, rows[1:], columns), frame, lines[:1], rows[1:], columns)
    raise InputError(
        f"{path}: found the header {lines[0]!r}, expected none (voxels), {','.join('ijk'[:d])} (voxels) or "
        f"{','.join('xyz'[:d])} (LPS millimetres, as ANTs)"
    )


def _read_pts(path: Path, lines: list[str], d: int) -> PointFile:
    kind = lines[0].strip().lower() if lines else ""
    if kind not in ("point", "index") or len(lines) < 2 or not lines[1].strip().isdigit():
        raise InputError(
            f"{path}: found no elastix header, expected 'point' or 'index' and then how many points follow"
        )
    rows = [line.split() for line in lines[2:]]
    if len(rows) != int(lines[1]):
        raise InputError(f"{path}: found {len(rows)} points, expected {int(lines[1])} as its second line says")
    if rows and {len(row) for row in rows} != {d}:
        raise InputError(f"{path}: found {sorted({len(row) for row in rows})} numbers a line, expected {d}")
    return PointFile(path, _numbers(path, rows, range(d)), "LPS" if kind == "point" else "voxels", (), rows, range(d))


def _read_fcsv(path: Path, lines: list[str], d: int) -> PointFile:
    head = [line for line in lines if line.startswith("#")]
    said = {key.strip(" #").lower(): value.strip() for key, _, value in (line.partition("=") for line in head)}
    system = said.get("coordinatesystem", "RAS")  # Slicer before 4.11 wrote no other
    if system.lower() not in _SLICER_FRAMES:
        raise InputError(f"{path}: found CoordinateSystem = {system}, expected RAS or LPS")
    names = [name.strip() for name in said.get("columns", _SLICER).split(",")]
    if not all(axis in names for axis in "xyz"[:d]):
        raise InputError(f"{path}: found the columns {names}, expected x, y and z among them")
    columns = [names.index(axis) for axis in "xyz"[:d]]
    rows = list(csv.reader(line for line in lines if not line.startswith("#")))
    return PointFile(path, _numbers(path, rows, columns), _SLICER_FRAMES[system.lower()], head, rows, columns)


def _new_file(suffix: str, count: int, d: int) -> tuple[str, list[str], list[list[str]], list[int]]:
    """Return frame, head, rows and columns of a file that has no model of its own kind."""
    if suffix == ".fcsv":
        head = ["# Markups fiducial file version = 4.11", "# CoordinateSystem = LPS", f"# columns = {_SLICER}"]
        tail = ["0", "0", "0", "1", "1", "1", "0"]
        rows = [[str(n + 1), "0", "0", "0", *tail, f"P-{n + 1}", "", ""] for n in range(count)]
        return "LPS", head, rows, list(range(1, d + 1))
    head = ["point", str(count)] if suffix == ".pts" else [",".join("xyz"[:d])]
    return "LPS", head, [["0"] * d for _ in range(count)], list(range(d))


def write_point_file(path: str | Path, world: Tensor, model: PointFile, grid: Grid | None = None) -> None:
    """Write points in the form of the file that they came from, or in that of another suffix.

    Frame, header, labels and other columns stay as in ``model`` where the suffix is the same. ``.pts`` is always
    written as ``point``: an ``index`` means whole voxels. Another suffix: LPS millimetres.

    Args:
        path: ``.csv``, ``.pts`` or ``.fcsv``.
        world: (N, d) RAS millimetres, in the model's order.
        model: the file that was read.
        grid: of the image that the points lie in now; only voxels need it.

    Raises:
        InputError: an unknown suffix, voxels and no grid, millimetres for a tilted slice, or an unwritable folder.
    """
    path = Path(path)
    suffix, d = path.suffix.lower(), world.shape[1]
    if suffix not in POINT_SUFFIXES:
        raise InputError(f"{path}: unknown suffix for points, expected one of {', '.join(POINT_SUFFIXES)}")
    if suffix == model.path.suffix.lower() and suffix != ".pts":
        frame, head, rows, columns = model.frame, list(model.head), model.rows, model.columns
    else:
        frame, head, rows, columns = _new_file(suffix, len(world), d)
    _check_plane(path, frame, grid)
    if frame == "voxels" and grid is None:
        raise InputError(f"{path}: points in voxels need the image that they lie in now, expected its file (onto)")
    numbers = world.double()
    if frame == "voxels" and grid is not None:
        numbers = grid.to_voxels(numbers)
    elif frame == "LPS":
        numbers = numbers @ torch.from_numpy(_flip(d))
    text = io.StringIO()
    text.writelines(line + "\n" for line in head)
    writer = csv.writer(text, delimiter=" " if suffix == ".pts" else ",", lineterminator="\n")
    for row, point in zip(rows, numbers.tolist(), strict=True):
        cells = list(row)
        for column, value in zip(columns, point, strict=True):
            cells[column] = repr(round(value, 6))
        writer.writerow(cells)
    atomic_write(path, lambda stream: stream.write(text.getvalue().encode()))
