"""Point files: frames, directions of axes, what is kept, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from shared.errors import InputError
from shared.transform_io import Grid, is_point_file, read_point_file, write_point_file
from tests.world_pair import world_pair

GRID = Grid((10, 12, 14), np.array([[-2.0, 0, 0, 10], [0, 3, 0, -5], [0, 0, 4, 1], [0, 0, 0, 1]]))
SLICER = (
    "# Markups fiducial file version = 4.11\n# CoordinateSystem = {}\n"
    "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"
    '1,1.5,2.5,3.5,0,0,0,1,1,1,0,"apex, left",,\n2,-1,0,7,0,0,0,1,1,1,0,base,,\n'
)
PLACES = {
    "voxels.csv": ("1.5,2.5,3.5\n-1,0,7\n", [[7, 2.5, 15], [12, -5, 29]]),
    "named.csv": ("label,i,j,k\na,1.5,2.5,3.5\nb,-1,0,7\n", [[7, 2.5, 15], [12, -5, 29]]),
    "ants.csv": ("x,y,z,t\n1.5,2.5,3.5,0\n-1,0,7,0\n", [[-1.5, -2.5, 3.5], [1, 0, 7]]),
    "point.pts": ("point\n2\n1.5 2.5 3.5\n-1 0 7\n", [[-1.5, -2.5, 3.5], [1, 0, 7]]),
    "index.pts": ("index\n2\n1.5 2.5 3.5\n-1 0 7\n", [[7, 2.5, 15], [12, -5, 29]]),
    "lps.fcsv": (SLICER.format("LPS"), [[-1.5, -2.5, 3.5], [1, 0, 7]]),
    "ras.fcsv": (SLICER.format("RAS"), [[1.5, 2.5, 3.5], [-1, 0, 7]]),
    "old.fcsv": (SLICER.format("0"), [[1.5, 2.5, 3.5], [-1, 0, 7]]),
    "oldest.fcsv": ("# columns = id,x,y,z\nf,1.5,2.5,3.5\ng,-1,0,7\n", [[1.5, 2.5, 3.5], [-1, 0, 7]]),
}


@pytest.mark.parametrize("name", PLACES)
def test_every_kind_knows_its_frame(tmp_path, name):
    text, expected = PLACES[name]
    (tmp_path / name).write_text(text)
    assert is_point_file(tmp_path / name)
    np.testing.assert_allclose(read_point_file(tmp_path / name, 3).world(GRID), expected, atol=1e-9)


@pytest.mark.parametrize("name", PLACES)
def test_the_same_points_are_written_as_they_were_read(tmp_path, name):
    text, _ = PLACES[name]
    (tmp_path / name).write_text(text)
    points = read_point_file(tmp_path / name, 3)
    out = tmp_path / ("out" + points.path.suffix)
    write_point_file(out, points.world(GRID) + 1, points, GRID)
    again = read_point_file(out, 3)
    np.testing.assert_allclose(again.world(GRID), points.world(GRID) + 1, atol=1e-5)
    assert again.frame == ("LPS" if name == "index.pts" else points.frame)
    if not name.endswith(".pts"):
        assert list(again.head) == list(points.head)
        kept = [c for c in range(len(points.rows[0])) if c not in points.columns]
        assert [[row[c] for c in kept] for row in again.rows] == [[row[c] for c in kept] for row in points.rows]


@pytest.mark.parametrize("name", ["voxels.csv", "point.pts", "ras.fcsv"])
@pytest.mark.parametrize("suffix", ["csv", "pts", "fcsv"])
def test_another_suffix_is_another_kind(tmp_path, name, suffix):
    (tmp_path / name).write_text(PLACES[name][0])
    points = read_point_file(tmp_path / name, 3)
    write_point_file(tmp_path / f"out.{suffix}", points.world(GRID), points, GRID)
    again = read_point_file(tmp_path / f"out.{suffix}", 3)
    np.testing.assert_allclose(again.world(GRID), points.world(GRID), atol=1e-5)


def test_two_dimensions(tmp_path):
    pair = world_pair(2)
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    assert read_point_file(tmp_path / "a.csv", 2).world(None).tolist() == [[-1, -2]]
    (tmp_path / "b.csv").write_text("3,4\n")
    points = read_point_file(tmp_path / "b.csv", 2)
    torch.testing.assert_close(points.world(pair.fixed), pair.fixed.to_world(torch.tensor([[3.0, 4.0]])))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "found no point"),
        ("a.csv", "x,y,z\n", "found no point"),
        ("a.csv", "1,2\n3,4\n", r"found \[2\] columns and no header, expected 3"),
        ("a.csv", "1,2,3\n4,5\n", r"found \[2, 3\] columns and no header"),
        ("a.csv", "1,2,nan\n", "found NaN or infinite coordinates"),
        ("a.csv", "a,b,c\n1,2,3\n", "found the header 'a,b,c', expected none .voxels., i,j,k .voxels. or x,y,z .LPS"),
        ("a.csv", "x,y,z\n1,2,three\n", "not readable as points"),
        ("a.csv", "x,y,z\n1,2\n", "not readable as points"),
        ("a.pts", "1 2 3\n", "found no elastix header, expected 'point' or 'index'"),
        ("a.pts", "point\n3\n1 2 3\n", "found 1 points, expected 3 as its second line says"),
        ("a.pts", "point\n1\n1 2\n", r"found \[2\] numbers a line, expected 3"),
        ("a.pts", "point\n0\n", "found no point"),
        ("a.fcsv", SLICER.format("IJK"), "found CoordinateSystem = IJK, expected RAS or LPS"),
        ("a.fcsv", "# columns = id,a,b\n1,2,3\n", "expected x, y and z among them"),
        ("a.fcsv", "# CoordinateSystem = LPS\n", "found no point"),
        ("a.json", "{}", "unknown suffix '.json' for points, expected one of .csv, .pts, .fcsv"),
    ],
)
def test_bad_files_are_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=rf"{name}: .*{message}"):
        read_point_file(tmp_path / name, 3)


def test_missing_binary_and_gridless_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"a\.csv: no such point file"):
        read_point_file(tmp_path / "a.csv", 3)
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(InputError, match=r"a\.csv: not readable as points"):
        read_point_file(tmp_path / "a.csv", 3)
    (tmp_path / "a.csv").write_text("1,2,3\n")
    points = read_point_file(tmp_path / "a.csv", 3)
    with pytest.raises(InputError, match=r"a\.csv: found points in voxels, expected the image that they lie in"):
        points.world(None)
    with pytest.raises(InputError, match=r"b\.csv: points in voxels need the image that they lie in now"):
        write_point_file(tmp_path / "b.csv", points.world(GRID), points)
    with pytest.raises(InputError, match=r"b\.txt: unknown suffix for points"):
        write_point_file(tmp_path / "b.txt", points.world(GRID), points, GRID)
