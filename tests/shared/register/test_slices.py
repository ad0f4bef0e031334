"""Single slices of volumes: registered in their plane, written where they lie, with transforms that ITK takes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from shared.apply import apply_files
from shared.data.images import read_grid, read_voxels
from shared.errors import InputError
from shared.register import register
from shared.transform_io import Affine, Grid, Transform, read_point_file, read_transform, write_transform
from tests.itk_peer import itk_points, itk_transform, itk_warped
from tests.shared.register.pairs import known_pair, write_points
from tests.world_pair import WorldPair


def tilt(degrees: float) -> np.ndarray:
    """Return a turn about the first axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def in_volume(file: Path, turn: np.ndarray, height: float, axis: int) -> np.ndarray:
    """Store a 2D file's image as a slice 5 mm thick, ``height`` mm along the turned z axis; returns the 4 x 4."""
    voxels, grid = read_voxels(file, 2)
    matrix = np.eye(4)
    matrix[:3, [a for a in range(3) if a != axis]] = turn[:, :2] @ grid.affine[:2, :2]
    matrix[:3, axis] = 5 * turn[:, 2]
    matrix[:3, 3] = turn @ [*grid.affine[:2, 2], height]
    image = nib.Nifti1Image(np.expand_dims(voxels, axis), matrix)
    image.set_sform(matrix, code=1)
    image.set_qform(None, code=0)
    nib.save(image, file)
    return matrix


@dataclass
class Slices:
    """A registered pair of slices: folder, 2D pair and transform, affine of the fixed file, result."""

    folder: Path
    pair: WorldPair
    truth: Transform
    affine: np.ndarray
    axis: int
    result: dict


@pytest.fixture(
    scope="module", params=[(0, 2), (30, 2), (30, 1), (90, 0)], ids=lambda p: f"{p[0]} degrees, axis {p[1]}"
)
def done(request, tmp_path_factory) -> Slices:
    degrees, axis = request.param
    folder = tmp_path_factory.mktemp("slices")
    pair, truth = known_pair(folder, 2)
    affine = in_volume(folder / "fixed.nii.gz", tilt(degrees), 80.0, axis)
    in_volume(folder / "fixed_label.nii.gz", tilt(degrees), 80.0, axis)
    for name in ("moving", "moving_label"):
        in_volume(folder / f"{name}.nii.gz", tilt(degrees), 95.0, axis)
    labels = {f"{side}_label": folder / f"{side}_label.nii.gz" for side in ("fixed", "moving")}
    result = register(folder / "fixed.nii.gz", folder / "moving.nii.gz", folder / "out", **labels)
    return Slices(folder, pair, truth, affine, axis, result)


def test_the_spacing_is_that_of_the_plane_and_the_result_lies_where_the_fixed_slice_does(done):
    grid = read_grid(done.folder / "fixed.nii.gz", None)
    assert grid.shape == done.pair.fixed.shape
    np.testing.assert_allclose(grid.spacing_mm, done.pair.fixed.spacing_mm, rtol=1e-5)
    scores = done.result["scores"]
    assert scores["similarity"] > scores["similarity_before"] + 0.02
    assert scores["dice"] > scores["dice_before"] + 0.1
    for name in ("warped", "warped_label"):
        image = nib.load(done.folder / "out" / f"{name}.nii.gz")
        assert image.shape == nib.load(done.folder / "fixed.nii.gz").shape
        np.testing.assert_allclose(image.affine, done.affine, atol=1e-4)


@pytest.mark.parametrize("name", ["transform.h5", "transform.nii.gz"])
def test_itk_makes_our_warp_of_the_transform(done, name):
    out = done.folder / "out"
    warped = np.asarray(nib.load(out / "warped.nii.gz").dataobj).squeeze()
    theirs = itk_warped(done.folder / "moving.nii.gz", done.folder / "fixed.nii.gz", itk_transform(out / name, 3))
    inside = done.pair.interior(done.truth, 4)
    assert inside.mean() > 0.1
    assert np.abs(warped - theirs.squeeze())[inside].mean() < 1e-3 * np.ptp(warped)
    assert np.abs(warped)[inside].mean() > 0.1 * np.ptp(warped)


@pytest.mark.parametrize("name", ["inverse_transform.h5", "inverse_transform.nii.gz"])
def test_the_inverse_leads_back_from_plane_to_plane(done, name):
    out = done.folder / "out"
    share = np.random.default_rng(0).uniform(0.3, 0.7, (20, 3))
    points = share * (np.array(read_grid(done.folder / "fixed.nii.gz", None).thick.shape) - 1)
    world = Grid((0, 0, 0), done.affine).to_world(torch.from_numpy(points)).numpy()
    there = itk_points(itk_transform(out / "transform.h5", 3), world)
    moving = read_grid(done.folder / "moving.nii.gz", None).thick
    landed = moving.to_voxels(torch.from_numpy(there))
    assert float(landed[:, done.axis].abs().max()) < 1e-3
    back = itk_points(itk_transform(out / name, 3), there)
    assert np.linalg.norm(back - world, axis=1).mean() < 0.1 * min(done.pair.fixed.spacing_mm)


@pytest.mark.parametrize("name", ["transform.h5", "transform.nii.gz"])
def test_apply_makes_the_same_of_the_slices(done, name):
    out = done.folder / "out"
    files = {"reference": done.folder / "fixed.nii.gz", "input": done.folder / "moving.nii.gz"}
    apply_files([out / name], **files, out=out / "again.nii.gz")
    ours, again = (nib.load(out / n) for n in ("warped.nii.gz", "again.nii.gz"))
    np.testing.assert_allclose(again.affine, done.affine, atol=1e-4)
    values = np.asarray(ours.dataobj)
    inside = np.expand_dims(done.pair.interior(done.truth, 4), done.axis)
    assert np.abs(values - np.asarray(again.dataobj))[inside].mean() < 1e-3 * np.ptp(values)
    (out / "again.nii.gz").unlink()


def test_the_transform_is_a_start_again(done, tmp_path):
    files = (done.folder / "fixed.nii.gz", done.folder / "moving.nii.gz")
    for name in ("transform.h5", "affine.txt"):
        again = register(*files, tmp_path, init=done.folder / "out" / name, optimise=0)
        one, two = (
            read_transform(folder / "affine.txt", 3).affine.matrix for folder in (done.folder / "out", tmp_path)
        )
        if name == "affine.txt":
            np.testing.assert_allclose(two, one, atol=1e-4)
        else:
            assert again["scores"]["similarity"] == pytest.approx(done.result["scores"]["similarity"], abs=1e-3)


def test_points_of_a_tilted_slice_are_voxels(done, tmp_path):
    write_points(tmp_path / "p.csv", done.pair.points(4).numpy())
    (tmp_path / "v.csv").write_text("i,j\n5,6\n9,8\n")
    files = (done.folder / "fixed.nii.gz", done.folder / "moving.nii.gz", tmp_path / "out")
    options = {"init": done.folder / "out" / "transform.h5", "optimise": 0}
    register(*files, **options, fixed_points=tmp_path / "v.csv")
    moved = read_point_file(tmp_path / "out" / "fixed_points_in_moving.csv", 2).points
    voxels = np.insert([[5.0, 6.0], [9.0, 8.0]], done.axis, 0.0, axis=1)
    world = Grid((0, 0, 0), done.affine).to_world(torch.from_numpy(voxels)).numpy()
    theirs = itk_points(itk_transform(done.folder / "out" / "transform.h5", 3), world)
    landed = read_grid(done.folder / "moving.nii.gz", None).thick.to_voxels(torch.from_numpy(theirs)).numpy()
    np.testing.assert_allclose(moved, np.delete(landed, done.axis, axis=1), atol=2e-3)
    if read_grid(files[0], None).plane.tilted:
        with pytest.raises(InputError, match=r"p\.csv: found points in LPS millimetres for a single slice"):
            register(*files, **options, fixed_points=tmp_path / "p.csv")


def test_a_label_of_the_same_slice_stored_along_another_axis_and_one_of_the_next_slice(done, tmp_path):
    files = (done.folder / "fixed.nii.gz", done.folder / "moving.nii.gz", tmp_path / "out")
    label = nib.load(done.folder / "fixed_label.nii.gz")
    far = label.affine.copy()
    far[:3, 3] += 3 * far[:3, done.axis]
    nib.save(nib.Nifti1Image(np.asarray(label.dataobj), far), tmp_path / "next.nii.gz")
    with pytest.raises(InputError, match=r"next\.nii\.gz: found a label that lies elsewhere in the world"):
        register(*files, init="none", optimise=0, fixed_label=tmp_path / "next.nii.gz")
    order = [(a + 1) % 3 for a in range(3)]
    turned = nib.Nifti1Image(np.asarray(label.dataobj).transpose(order), label.affine[:, [*order, 3]])
    nib.save(turned, tmp_path / "turned.nii.gz")
    labels = {"moving_label": done.folder / "moving_label.nii.gz"}
    options = {"init": done.folder / "out" / "transform.h5", "optimise": 0}
    labels["fixed_label"] = tmp_path / "turned.nii.gz"
    with warnings.catch_warnings():
        # Told where the two axes of the slice are exchanged as well.
        warnings.simplefilter("ignore", UserWarning)
        again = register(*files, **options, **labels)
    assert again["scores"]["dice"] == pytest.approx(done.result["scores"]["dice"], abs=0.02)


def test_a_transform_out_of_the_plane_is_refused(done, tmp_path):
    matrix = np.eye(4)
    matrix[:3, 3] = -40.0
    write_transform(tmp_path / "out.h5", Transform((Affine(matrix),)))
    with pytest.raises(
        InputError, match=r"out\.h5: found a transform that leads .* mm out of the moving slice's plane"
    ):
        register(
            done.folder / "fixed.nii.gz", done.folder / "moving.nii.gz", tmp_path / "out", init=tmp_path / "out.h5"
        )


def test_a_slice_whose_axes_span_no_plane_is_named(tmp_path):
    image = nib.Nifti1Image(np.random.default_rng(0).random((6, 7, 1)).astype(np.float32), np.diag([1.0, 1, 1, 1]))
    image.set_sform(np.array([[1.0, 2, 0, 0], [1, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), code=1)
    nib.save(image, tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match=r"a\.nii\.gz: found a singular affine"):
        read_grid(tmp_path / "a.nii.gz", None)
