"""Learn2Reg's layout, against what the challenge's evaluation computes from it: scipy's map_coordinates on voxels."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import map_coordinates, zoom

from shared.errors import InputError
from shared.transform_io import Grid, read_transform, write_transform
from tests.world_pair import world_pair


def voxels_of(shape) -> np.ndarray:
    return np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"))


@pytest.mark.parametrize("suffix", ["npz", "nii.gz"])
def test_the_evaluation_warps_as_we_do(tmp_path, suffix):
    pair = world_pair()
    file = tmp_path / f"disp_0001_0002.{suffix}"
    write_transform(file, pair.transform, pair.fixed, pair.moving, "learn2reg")
    disp = np.load(file)["arr_0"] if suffix == "npz" else nib.load(file).get_fdata()
    assert disp.shape == (*pair.fixed.shape, 3)
    place = voxels_of(pair.fixed.shape) + disp.transpose(3, 0, 1, 2)
    world = np.moveaxis(place, 0, -1) @ pair.moving.affine[:3, :3].T + pair.moving.affine[:3, 3]
    start = np.moveaxis(voxels_of(pair.fixed.shape), 0, -1) @ pair.fixed.affine[:3, :3].T + pair.fixed.affine[:3, 3]
    expected = pair.transform.move(np_points(start)).numpy().reshape(start.shape)
    np.testing.assert_allclose(world, expected, atol=1e-3)
    theirs = map_coordinates(pair.image, place, order=1)
    ddf = pair.transform.ddf(pair.fixed, pair.moving)[0].numpy()
    np.testing.assert_allclose(
        theirs, map_coordinates(pair.image, voxels_of(pair.fixed.shape) + ddf, order=1), atol=0.1
    )


def np_points(points: np.ndarray):
    import torch

    return torch.from_numpy(points.reshape(-1, points.shape[-1]))


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("suffix", ["npz", "nii.gz"])
def test_a_field_comes_back_into_the_world(tmp_path, d, suffix):
    pair = world_pair(d)
    file = tmp_path / f"t.{suffix}"
    write_transform(file, pair.transform, pair.fixed, pair.moving, "learn2reg")
    back = read_transform(file, d, pair.fixed, pair.moving)
    expected = pair.transform.displacement(pair.fixed).move(pair.points())
    np.testing.assert_allclose(back.move(pair.points()), expected, atol=1e-3)


@pytest.mark.parametrize("half", [False, True])
def test_the_layout_of_2020_and_2021(tmp_path, half):
    pair = world_pair()
    total = pair.transform.ddf(pair.fixed, pair.moving)[0].numpy()
    stored = np.stack([zoom(c, 0.5, order=2) for c in total]).astype(np.float16) if half else total
    np.savez(tmp_path / "t.npz", stored)
    back = read_transform(tmp_path / "t.npz", 3, pair.fixed, pair.moving).ddf(pair.fixed, pair.moving)[0].numpy()
    expected = np.stack([zoom(c.astype(np.float32), 2, order=2) for c in stored]) if half else total
    np.testing.assert_allclose(back, expected, atol=2e-4)


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (
            lambda p: np.savez(p, np.zeros((5, 5, 5, 3))),
            r"found displacements of shape \(5, 5, 5, 3\), expected \(8, 9,",
        ),
        (lambda p: np.savez(p, np.full((8, 9, 10, 3), np.nan)), "found NaN or infinite displacements"),
        (
            lambda p: np.savez(p, a=np.zeros(1), b=np.zeros(1)),
            r"found the arrays \['a', 'b'\], expected one named 'arr_0'",
        ),
        (lambda p: p.write_text("no"), "not readable as a transform"),
        (lambda p: np.savez(p, np.array([{"a": 1}], dtype=object)), "not readable as a transform"),
    ],
)
def test_bad_files_are_named(tmp_path, save, message):
    save(tmp_path / "t.npz")
    grid = Grid((8, 9, 10), np.eye(4))
    with pytest.raises(InputError, match=r"t\.npz: " + message):
        read_transform(tmp_path / "t.npz", 3, grid, grid)


def test_it_needs_both_images(tmp_path):
    np.savez(tmp_path / "t.npz", np.zeros((8, 9, 10, 3)))
    with pytest.raises(InputError, match="holds voxels and no world; expected the grids of both its images"):
        read_transform(tmp_path / "t.npz", 3, Grid((8, 9, 10), np.eye(4)))
