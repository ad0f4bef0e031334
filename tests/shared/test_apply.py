"""Saved transforms on images, labels and points: one interpolation, native grids, the direction of points."""

from __future__ import annotations

import warnings

import itk
import nibabel as nib
import numpy as np
import pytest
import torch

from shared.apply import apply_files, resample, resample_labels
from shared.errors import InputError
from shared.transform_io import Grid, Transform, read_transform, write_image, write_nifti, write_transform
from shared.warp import warp
from tests.itk_peer import itk_chain, itk_points, itk_transform, itk_warped
from tests.learn2reg_folder import affine, blobs, save
from tests.world_pair import world_pair


@pytest.fixture(params=[2, 3])
def pair(request):
    return world_pair(request.param)


@pytest.fixture
def files(pair, tmp_path) -> dict[str, str]:
    """Write the pair's images, labels and transforms, as ANTs would have them."""
    fixed, moving = pair.write(tmp_path)
    write_nifti(tmp_path / "labels.nii.gz", np.digitize(pair.image, [30, 50, 70]).astype(np.uint8), pair.moving)
    write_transform(tmp_path / "1Warp.nii.gz", Transform((pair.field,)), pair.fixed)
    write_transform(tmp_path / "0Affine.mat", Transform((pair.affine,)))
    names = {"labels": "labels.nii.gz", "warp": "1Warp.nii.gz", "affine": "0Affine.mat"}
    return {"fixed": str(fixed), "moving": str(moving)} | {k: str(tmp_path / v) for k, v in names.items()}


# -- images ------------------------------------------------------------------------------------------------------------


def test_a_list_of_transforms_gives_what_itk_gives(pair, files, tmp_path):
    chain = [files["warp"], files["affine"]]
    result = apply_files(chain, files["fixed"], tmp_path / "out.nrrd", files["moving"])
    write_image(tmp_path / "again.nii.gz", read(tmp_path / "out.nrrd", pair)[0], pair.fixed)
    theirs = itk_warped(
        tmp_path / "moving.nii.gz",
        tmp_path / "fixed.nii.gz",
        itk_chain([itk_transform(tmp_path / n, pair.dims) for n in ("1Warp.nii.gz", "0Affine.mat")], pair.dims),
    )
    ours, grid = read(tmp_path / "out.nrrd", pair)
    inside = pair.interior(pair.transform)
    assert np.abs(ours - theirs)[inside].max() < 1e-3 * np.ptp(pair.image)
    np.testing.assert_allclose(grid.affine, pair.fixed.affine, atol=1e-4)
    assert 0.3 < result["covered"] <= 1
    assert set(result) == {"out", "covered"}


def read(path, pair):
    from shared.data.images import read_voxels

    return read_voxels(path, pair.dims)


@pytest.mark.parametrize("interpolation", ["nearest", "label"])
@pytest.mark.parametrize("suffix", ["nii.gz", "mha"])
def test_labels_keep_their_type_and_values(pair, files, tmp_path, interpolation, suffix):
    out = tmp_path / f"out.{suffix}"
    apply_files([files["warp"], files["affine"]], files["fixed"], out, files["labels"], interpolation)
    labels, grid = read(out, pair)
    assert labels.dtype == np.uint8
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    assert grid.shape == pair.fixed.shape


def test_inverse_brings_the_fixed_image_to_the_moving_one(pair, files, tmp_path):
    chain = [files["warp"], files["affine"]]
    result = apply_files(chain, files["moving"], tmp_path / "out.nii.gz", files["fixed"], inverse=True)
    assert 0 < result["residual_mm"] < 0.1 * min(pair.fixed.spacing_mm)
    ours, grid = read(tmp_path / "out.nii.gz", pair)
    assert grid.shape == pair.moving.shape
    # Where moving space comes from in the fixed image, by the closed chain of parts.
    inverse, _ = pair.transform.inverse()
    expected = resample(blobs(pair.fixed.shape), inverse.ddf(pair.moving, pair.fixed))
    np.testing.assert_allclose(ours, expected, atol=1e-2)


def test_one_of_several_can_be_inverted(pair, files, tmp_path):
    apply_files([(files["affine"], True)], files["fixed"], tmp_path / "out.nii.gz", files["moving"])
    inverse, _ = Transform((pair.affine,)).inverse()
    theirs = itk_warped(
        tmp_path / "moving.nii.gz",
        tmp_path / "fixed.nii.gz",
        itk_transform(tmp_path / "0Affine.mat", pair.dims).GetInverseTransform(),
    )
    ours, _ = read(tmp_path / "out.nii.gz", pair)
    assert np.abs(ours - theirs)[pair.interior(inverse)].max() < 1e-3 * np.ptp(pair.image)


def test_identity_is_the_image_itself(tmp_path):
    path = save(tmp_path / "a.nii.gz", (10 * blobs()).astype(np.int16), affine((1, 2, 3), degrees=20))
    (tmp_path / "one.txt").write_text("1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n")
    for interpolation in ("linear", "nearest"):
        apply_files([tmp_path / "one.txt"], path, tmp_path / "b.nii.gz", path, interpolation)
        np.testing.assert_allclose(nib.load(tmp_path / "b.nii.gz").get_fdata(), nib.load(path).get_fdata(), atol=1e-2)


def test_outside_the_image_lies_its_darkest_value(tmp_path):
    image = np.full((6, 6, 6), 40.0, np.float32)
    image[0, 0, 0] = -1000
    far = torch.full((1, 3, 4, 4, 4), 50.0)
    assert (resample(image, far) == -1000).all()
    assert (resample(image.astype(np.int16), far, "nearest") == -1000).all()
    assert (resample_labels((image + 1000).astype(np.int16), far) == 0).all()


def test_outside_a_label_map_without_background_lies_0():
    labels = np.repeat([3, 7], 18).reshape(6, 6).astype(np.uint8)
    far = torch.full((1, 2, 4, 4), 50.0)
    for interpolation in ("nearest", "label"):
        assert (resample(labels, far, interpolation) == 0).all()
    assert (resample(labels.astype(np.float32), far, "nearest", outside=2) == 2).all()


@pytest.mark.parametrize("d", [2, 3])
def test_a_label_wins_by_its_share(d, generator):
    size = (9, 8, 7)[:d]
    labels = torch.randint(0, 4, size, generator=generator)
    ddf = 3 * torch.randn(1, d, *(7, 10, 8)[:d], generator=generator)
    masks = torch.stack([(labels == value).double() for value in range(4)])[None]
    shares = warp(masks, ddf)[0]
    shares[0] += 1 - shares.sum(0)  # outside is background
    expected = shares.argmax(0)
    found = torch.from_numpy(resample_labels(labels.numpy(), ddf))
    clear = shares.topk(2, 0).values.diff(dim=0).abs()[0] > 1e-4
    assert clear.float().mean() > 0.95
    assert torch.equal(found[clear], expected[clear])


def test_equal_shares_go_to_the_lowest_label():
    labels = np.array([[7, 3], [7, 3]], np.int32)
    ddf = torch.tensor([0.0, 0.5]).reshape(1, 2, 1, 1)
    assert resample_labels(labels, ddf).tolist() == [[3]]


def test_large_labels_survive(tmp_path):
    labels = np.zeros((5, 5), np.int32)
    labels[1:4, 1:4] = 2**30 + 1
    still = torch.zeros(1, 2, 5, 5)
    np.testing.assert_array_equal(resample(labels, still, "nearest"), labels)
    np.testing.assert_array_equal(resample(labels, still, "label"), labels)


# -- points ------------------------------------------------------------------------------------------------------------


def ants_points(path, pair, world) -> None:
    frame = np.array([-1.0, -1.0, 1.0][: pair.dims])
    np.savetxt(path, world.numpy() * frame, delimiter=",", header="x,y,z"[: 2 * pair.dims - 1], comments="", fmt="%.9f")


def test_fixed_points_land_where_itk_sends_them(pair, files, tmp_path):
    ants_points(tmp_path / "p.csv", pair, pair.points())
    result = apply_files([files["warp"], files["affine"]], files["fixed"], tmp_path / "q.csv", tmp_path / "p.csv")
    assert result == {"out": str(tmp_path / "q.csv"), "points": 20, "points_outside": 0}
    chain = itk_chain([itk_transform(tmp_path / n, pair.dims) for n in ("1Warp.nii.gz", "0Affine.mat")], pair.dims)
    frame = np.array([-1.0, -1.0, 1.0][: pair.dims])
    ours = np.loadtxt(tmp_path / "q.csv", delimiter=",", skiprows=1) * frame
    np.testing.assert_allclose(ours, itk_points(chain, pair.points().numpy()), atol=1e-3)


def test_a_landmark_and_the_image_around_it_end_up_in_one_place(pair, files, tmp_path):
    """A spot in the moving image goes to the fixed grid with the transform, its landmark with the inverse."""
    spot = pair.moving.to_voxels(pair.transform.move(pair.points(5)[:1]))[0].round()
    voxels = np.stack(np.meshgrid(*[np.arange(n) for n in pair.moving.shape], indexing="ij"), -1)
    distance = np.linalg.norm((voxels - spot.numpy()) * pair.moving.spacing_mm, axis=-1)
    write_image(tmp_path / "spot.nii.gz", np.exp(-(distance**2) / 18).astype(np.float32), pair.moving)
    np.savetxt(tmp_path / "spot.csv", spot[None], delimiter=",")
    chain = [files["warp"], files["affine"]]
    apply_files(chain, files["fixed"], tmp_path / "warped.nii.gz", tmp_path / "spot.nii.gz")
    apply_files(
        chain, files["moving"], tmp_path / "landed.csv", tmp_path / "spot.csv", inverse=True, onto=files["fixed"]
    )
    warped, _ = read(tmp_path / "warped.nii.gz", pair)
    brightest = np.stack(np.unravel_index(warped.argmax(), warped.shape))
    landed = np.loadtxt(tmp_path / "landed.csv", delimiter=",")
    assert np.abs(landed - brightest).max() < 1


def test_points_outside_are_kept_and_counted(pair, files, tmp_path):
    rows = [[1.0] * pair.dims, [-30.0] * pair.dims, [500.0] * pair.dims]
    np.savetxt(tmp_path / "p.csv", rows, delimiter=",")
    chain = [files["warp"], files["affine"]]
    result = apply_files(chain, files["fixed"], tmp_path / "q.csv", tmp_path / "p.csv", onto=files["moving"])
    assert (result["points"], result["points_outside"]) == (3, 2)
    moved = pair.moving.to_voxels(pair.transform.move(pair.fixed.to_world(torch.tensor(rows))))
    np.testing.assert_allclose(np.loadtxt(tmp_path / "q.csv", delimiter=","), moved, atol=1e-3)


def test_points_in_voxels_need_the_image_they_land_in(files, tmp_path, pair):
    np.savetxt(tmp_path / "p.csv", [[1.0] * pair.dims], delimiter=",")
    with pytest.raises(InputError, match=r"q\.csv: points in voxels need the image that they lie in now.*onto"):
        apply_files([files["affine"]], files["fixed"], tmp_path / "q.csv", tmp_path / "p.csv")


# -- transforms --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "form"),
    [("t.h5", ""), ("t.nii.gz", ""), ("t.mha", ""), ("t.nii.gz", "niftyreg"), ("t.npz", ""), ("t.nii.gz", "learn2reg")],
)
def test_without_an_input_the_composition_is_written(pair, files, tmp_path, name, form):
    chain = [files["warp"], files["affine"]]
    apply_files(chain, files["fixed"], tmp_path / name, onto=files["moving"], form=form)
    back = read_transform(tmp_path / name, pair.dims, pair.fixed, pair.moving)
    np.testing.assert_allclose(
        back.move(pair.points()), pair.transform.displacement(pair.fixed).move(pair.points()), atol=0.1
    )
    if name == "t.npz":  # a field in voxels does the same to an image without further help
        for transforms, out in ((chain, "a.nii.gz"), ([tmp_path / name], "b.nii.gz")):
            apply_files(transforms, files["fixed"], tmp_path / out, files["moving"])
        np.testing.assert_allclose(
            read(tmp_path / "a.nii.gz", pair)[0], read(tmp_path / "b.nii.gz", pair)[0], atol=1e-2
        )


def test_the_inverse_of_a_field_in_voxels(pair, files, tmp_path):
    apply_files([files["warp"], files["affine"]], files["fixed"], tmp_path / "t.npz", onto=files["moving"])
    ants_points(tmp_path / "p.csv", pair, pair.points())
    apply_files([tmp_path / "t.npz"], files["fixed"], tmp_path / "q.csv", tmp_path / "p.csv", onto=files["moving"])
    apply_files(
        [tmp_path / "t.npz"], files["moving"], tmp_path / "r.csv", tmp_path / "q.csv", inverse=True, onto=files["fixed"]
    )
    start, end = (np.loadtxt(tmp_path / n, delimiter=",", skiprows=1) for n in ("p.csv", "r.csv"))
    assert np.linalg.norm(start - end, axis=1).max() < 0.1 * min(pair.fixed.spacing_mm)


# -- what is told ------------------------------------------------------------------------------------------------------


def test_linear_interpolation_of_a_label_map_is_warned_about(files, tmp_path):
    with pytest.warns(UserWarning, match=r"labels\.nii\.gz: looks like a label map"):
        apply_files([files["affine"]], files["fixed"], tmp_path / "out.nii.gz", files["labels"])


@pytest.mark.parametrize("kind", ["uint8", "int16", "float32"])
def test_images_and_label_maps_are_told_apart(tmp_path, kind):
    size = (24, 24, 24)
    (tmp_path / "one.txt").write_text("1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n")
    noise = np.random.default_rng(0).normal(0, 2, size)
    image = np.clip(blobs(size) + noise, 0, 200)
    parcels = np.zeros(size)  # a parcellation of many values
    parcels[2:22, 2:22, 2:22] = 1000 + np.arange(64).reshape(4, 4, 4).repeat(5, 0).repeat(5, 1).repeat(5, 2)
    if kind == "uint8":
        parcels = np.where(parcels > 0, parcels - 990, 0)
    paths = {n: save(tmp_path / f"{n}.nii.gz", v.astype(kind)) for n, v in (("image", image), ("labels", parcels))}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apply_files([tmp_path / "one.txt"], paths["image"], tmp_path / "out.nii.gz", paths["image"])
    with pytest.warns(UserWarning, match="looks like a label map"):
        apply_files([tmp_path / "one.txt"], paths["image"], tmp_path / "out.nii.gz", paths["labels"])


def test_the_transform_of_another_pair_is_warned_about(files, tmp_path, pair):
    matrix = pair.fixed.affine.copy()
    matrix[0, pair.dims] += 500
    far = Grid(pair.fixed.shape, matrix)
    write_nifti(tmp_path / "far.nii.gz", blobs(far.shape), far)
    with (
        pytest.warns(UserWarning, match=r"a displacement field at .* does not reach .*far\.nii\.gz"),
        pytest.warns(UserWarning, match=r"moving\.nii\.gz: no voxel of the reference comes from this image"),
    ):
        result = apply_files([files["warp"]], tmp_path / "far.nii.gz", tmp_path / "out.nii.gz", files["moving"])
    assert result["covered"] == 0


def test_an_inexact_inverse_is_warned_about(files, tmp_path, pair, generator):
    pair.field.ddf[:] = 4 * torch.randn(pair.field.ddf.shape, generator=generator)
    write_transform(tmp_path / "folded.h5", Transform((pair.field,)))
    with pytest.warns(UserWarning, match=r"the inverse is off by up to .* mm \(a voxel measures"):
        result = apply_files(
            [tmp_path / "folded.h5"], files["moving"], tmp_path / "o.nii.gz", files["fixed"], inverse=True
        )
    assert result["residual_mm"] > 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"interpolation": "liner"}, r"found the interpolation 'liner' \(did you mean 'linear'\?\), expected one of"),
        ({"transforms": []}, "found no transform, expected one or more"),
        ({"transforms": ["none.h5"]}, r"none\.h5: no such transform file"),
        ({"out": "out.png"}, r"out\.png: unknown image suffix '\.png'"),
        ({"input": "none.nii.gz"}, r"none\.nii\.gz: no such image file"),
        ({"reference": "none.nii.gz"}, r"none\.nii\.gz: no such image file"),
        ({"interpolation": "label"}, r"moving\.nii\.gz: found fractional values, expected whole numbers"),
        ({"input": None, "out": "t.npz"}, r"t\.npz: a field needs the grid of the fixed image, and for Learn2Reg"),
    ],
)
def test_bad_requests_are_named(pair, files, tmp_path, change, message):
    options = {
        "transforms": [files["warp"]],
        "reference": files["fixed"],
        "out": "out.nii.gz",
        "input": files["moving"],
    }
    options |= change
    options["out"] = tmp_path / options["out"]
    with pytest.raises(InputError, match=message):
        apply_files(**options)
    assert not options["out"].exists()


def test_nan_and_other_dimensions_are_named(tmp_path):
    pair, flat = world_pair(3), world_pair(2)
    fixed, moving = pair.write(tmp_path)
    write_transform(tmp_path / "flat.h5", flat.transform)
    write_transform(tmp_path / "t.h5", pair.transform)
    with pytest.raises(InputError, match=r"flat\.h5: found a 2D transform, expected 3D as the images are"):
        apply_files([tmp_path / "flat.h5"], fixed, tmp_path / "out.nii.gz", moving)
    write_nifti(tmp_path / "flat.nii.gz", flat.image, flat.moving)
    with pytest.raises(InputError, match=r"flat\.nii\.gz: found a 2D image"):
        apply_files([tmp_path / "t.h5"], fixed, tmp_path / "out.nii.gz", tmp_path / "flat.nii.gz")
    pair.image[3, 3, 3] = np.nan
    write_nifti(moving, pair.image, pair.moving)
    with pytest.raises(InputError, match=r"moving\.nii\.gz: found 1 NaN or infinite voxels"):
        apply_files([tmp_path / "t.h5"], fixed, tmp_path / "out.nii.gz", moving)


def test_several_fields_in_voxels_are_refused(pair, files, tmp_path):
    apply_files([files["warp"]], files["fixed"], tmp_path / "t.npz", onto=files["moving"])
    with pytest.raises(InputError, match=r"t\.npz: found a Learn2Reg field among 2 transforms.*--onto MOVING"):
        apply_files([tmp_path / "t.npz", files["affine"]], files["fixed"], tmp_path / "o.nii.gz", files["moving"])
    with pytest.raises(
        InputError, match=r"expected the grids of both its images \(for apply: --reference and --onto\)"
    ):
        apply_files([tmp_path / "t.npz"], files["fixed"], tmp_path / "o.h5")


@pytest.mark.parametrize("suffix", ["nii.gz", "nrrd"])
def test_a_time_series_gives_the_grid_of_its_frames(tmp_path, suffix):
    pair = world_pair()
    fixed, moving = pair.write(tmp_path)
    write_transform(tmp_path / "t.mat", Transform((pair.affine,)))
    frames = np.stack([blobs(pair.fixed.shape)] * 3, -1)
    series = save(tmp_path / "series.nii.gz", frames, pair.fixed.affine)
    if suffix == "nrrd":
        itk.imwrite(itk.imread(str(series)), str(tmp_path / "series.nrrd"))
    np.savetxt(tmp_path / "p.csv", [[3.0, 4.0, 5.0]], delimiter=",")
    results = []
    for reference in (fixed, tmp_path / f"series.{suffix}"):
        apply_files([tmp_path / "t.mat"], reference, tmp_path / "o.nii.gz", moving)
        options = {"input": tmp_path / "p.csv", "onto": reference}
        apply_files([tmp_path / "t.mat"], reference, tmp_path / "q.csv", **options)
        results.append((nib.load(tmp_path / "o.nii.gz"), np.loadtxt(tmp_path / "q.csv", delimiter=",")))
    (plain, points), (other, moved) = results
    np.testing.assert_allclose(other.get_fdata(), plain.get_fdata(), atol=1e-3)
    np.testing.assert_allclose(moved, points, atol=1e-4)
