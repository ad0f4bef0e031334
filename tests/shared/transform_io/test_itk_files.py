"""Our files in ITK's hands and ITK's in ours: the same image, the same points, the order of ANTs."""

from __future__ import annotations

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.io import savemat

from shared.errors import InputError
from shared.transform_io import Affine, Transform, read_transform, write_transform
from shared.warp import warp
from tests.itk_peer import itk_chain, itk_points, itk_transform, itk_warped
from tests.world_pair import world_pair

AFFINE, FIELD = ("mat", "txt", "tfm"), ("nii.gz", "nii", "nrrd", "mha")


def chosen(pair, suffix: str) -> Transform:
    """Return what a file of this suffix can hold."""
    if suffix in AFFINE:
        return Transform((pair.affine,))
    return Transform((pair.field,)) if suffix in FIELD else pair.transform


def warped(pair, transform: Transform) -> np.ndarray:
    ddf = transform.ddf(pair.fixed, pair.moving)
    return warp(torch.from_numpy(pair.image)[None, None], ddf)[0, 0].numpy()


def same_image(pair, transform: Transform, theirs: np.ndarray) -> bool:
    inside = pair.interior(transform)
    assert inside.mean() > 0.2
    spread = float(np.ptp(pair.image))
    nothing = warped(pair, Transform((Affine(np.eye(pair.dims + 1)),)))
    assert np.abs(nothing - theirs)[inside].max() > 0.1 * spread
    return np.abs(warped(pair, transform) - theirs)[inside].max() < 1e-3 * spread


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("suffix", ["h5", *AFFINE, *FIELD])
def test_itk_does_with_the_file_what_we_do(tmp_path, d, suffix):
    pair = world_pair(d)
    transform = chosen(pair, suffix)
    fixed_file, moving_file = pair.write(tmp_path)
    file = tmp_path / f"t.{suffix}"
    write_transform(file, transform, pair.fixed)
    theirs = itk_transform(file, d)
    assert same_image(pair, transform, itk_warped(moving_file, fixed_file, theirs))
    ours = transform.move(pair.points())
    assert (ours - pair.points()).norm(dim=1).max() > 1
    np.testing.assert_allclose(ours, itk_points(theirs, pair.points().numpy()), atol=1e-3)


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("suffix", ["h5", *AFFINE, *FIELD])
def test_writing_and_reading_is_the_identity(tmp_path, d, suffix):
    pair = world_pair(d)
    transform = chosen(pair, suffix)
    write_transform(tmp_path / f"t.{suffix}", transform, pair.fixed)
    back = read_transform(tmp_path / f"t.{suffix}", d)
    assert [type(part) for part in back.parts] == [type(part) for part in transform.parts]
    np.testing.assert_allclose(back.move(pair.points()), transform.move(pair.points()), atol=1e-4)
    for part, other in zip(back.parts, transform.parts, strict=True):
        if isinstance(part, Affine):
            np.testing.assert_allclose(part.matrix, other.matrix, atol=1e-9)
        else:
            np.testing.assert_allclose(part.grid.affine, other.grid.affine, atol=1e-4)
            torch.testing.assert_close(part.ddf, other.ddf, atol=1e-4, rtol=0)
    assert [p.name for p in tmp_path.iterdir()] == [f"t.{suffix}"]


@pytest.mark.parametrize("d", [2, 3])
def test_a_list_of_files_is_composed_as_by_ants(tmp_path, d):
    """ANTs: ``-t 1Warp.nii.gz -t 0GenericAffine.mat``: the warp lies on the fixed grid, the affine comes after it."""
    pair = world_pair(d)
    fixed_file, moving_file = pair.write(tmp_path)
    files = [tmp_path / "1Warp.nii.gz", tmp_path / "0GenericAffine.mat"]
    write_transform(files[0], Transform((pair.field,)), pair.fixed)
    write_transform(files[1], Transform((pair.affine,)))
    ours = Transform.chain(read_transform(file) for file in files)
    theirs = itk_chain([itk_transform(file, d) for file in files], d)
    assert same_image(pair, ours, itk_warped(moving_file, fixed_file, theirs))
    np.testing.assert_allclose(ours.move(pair.points()), itk_points(theirs, pair.points().numpy()), atol=1e-3)
    swapped = Transform.chain(read_transform(file) for file in reversed(files))
    assert (swapped.move(pair.points()) - ours.move(pair.points())).abs().max() > 0.05


@pytest.mark.parametrize("d", [2, 3])
def test_the_inverse_flag_of_an_affine(tmp_path, d):
    pair = world_pair(d)
    write_transform(tmp_path / "a.mat", Transform((pair.affine,)))
    inverse, residual = read_transform(tmp_path / "a.mat").inverse()
    theirs = itk_transform(tmp_path / "a.mat", d).GetInverseTransform()
    assert residual == 0
    np.testing.assert_allclose(inverse.move(pair.points()), itk_points(theirs, pair.points().numpy()), atol=1e-6)


def test_the_inverse_of_a_field_in_itks_hands(tmp_path):
    pair = world_pair()
    inverse, _ = pair.transform.inverse()
    write_transform(tmp_path / "inverse.h5", inverse)
    there = pair.transform.move(pair.points()).numpy()
    back = itk_points(itk_transform(tmp_path / "inverse.h5", 3), there)
    assert np.linalg.norm(back - pair.points().numpy(), axis=1).max() < 0.1 * min(pair.fixed.spacing_mm)


def test_itk_finds_the_parts_of_a_composite_in_its_own_order(tmp_path):
    pair = world_pair()
    write_transform(tmp_path / "t.h5", pair.transform)
    composite = itk_transform(tmp_path / "t.h5", 3)
    kinds = [composite.GetNthTransform(i).GetTransformTypeAsString().split("_")[0] for i in range(2)]
    assert kinds == ["AffineTransform", "DisplacementFieldTransform"]  # ITK runs through them backwards


def test_a_rigid_transform_with_a_centre(tmp_path):
    euler = itk.Euler3DTransform[itk.D].New()
    euler.SetCenter([10.0, -20.0, 5.0])
    euler.SetRotation(0.2, -0.1, 0.3)
    euler.SetTranslation([3.0, 4.0, -5.0])
    itk.transformwrite([euler], str(tmp_path / "rigid.tfm"))
    points = world_pair().points()
    ours = read_transform(tmp_path / "rigid.tfm").move(points)
    np.testing.assert_allclose(ours, itk_points(euler, points.numpy()), atol=1e-9)


@pytest.mark.parametrize("suffix", ["txt", "mat"])
@pytest.mark.parametrize("d", [2, 3])
def test_the_affine_of_older_ants(tmp_path, suffix, d):
    rng = np.random.default_rng(2)
    matrix, offset, centre = (
        np.eye(d) + 0.1 * rng.standard_normal((d, d)),
        rng.uniform(-9, 9, d),
        rng.uniform(-50, 50, d),
    )
    parameters = np.concatenate([matrix.ravel(), offset])
    name, file = f"MatrixOffsetTransformBase_double_{d}_{d}", tmp_path / f"a.{suffix}"
    if suffix == "mat":
        savemat(file, {name: parameters[:, None], "fixed": centre[:, None]}, format="4")
    else:
        numbers = [" ".join(map(repr, v.tolist())) for v in (parameters, centre)]
        head = "#Insight Transform File V1.0\n#Transform 0\n"
        file.write_text(f"{head}Transform: {name}\nParameters: {numbers[0]}\nFixedParameters: {numbers[1]}\n")
    peer = itk.AffineTransform[itk.D, d].New()
    peer.SetFixedParameters(vector(centre))
    peer.SetParameters(vector(parameters))
    points = world_pair(d).points()
    np.testing.assert_allclose(read_transform(file, d).move(points), itk_points(peer, points.numpy()), atol=1e-9)


def vector(values: np.ndarray) -> itk.OptimizerParameters:
    found = itk.OptimizerParameters[itk.D](len(values))
    for i, value in enumerate(values):
        found.SetElement(i, float(value))
    return found


@pytest.mark.parametrize("intent", [1006, 1007])
def test_the_intent_says_whether_a_nifti_is_ras_as_itk_reads_it(tmp_path, intent):
    pair = world_pair()
    write_transform(tmp_path / "plain.nii", Transform((pair.field,)), pair.fixed)
    image = nib.load(tmp_path / "plain.nii")
    image.header.set_intent(intent)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), tmp_path / "t.nii")
    ours = read_transform(tmp_path / "t.nii").move(pair.points())
    theirs = itk_points(itk_transform(tmp_path / "t.nii", 3), pair.points().numpy())
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


def bspline(path):
    itk.transformwrite([itk.BSplineTransform[itk.D, 3, 3].New()], str(path))


def vectors(path, components):
    image = itk.VectorImage[itk.F, 3].New()
    image.SetRegions([4, 4, 4])
    image.SetNumberOfComponentsPerPixel(components)
    image.Allocate()
    itk.imwrite(image, str(path))


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.h5", lambda p: p.write_text("no"), r"not readable as a transform \(.*expected an ITK file"),
        ("a.mat", lambda p: p.write_text("no"), r"not readable as a transform \(.*expected an ITK file"),
        ("a.tfm", lambda p: p.write_text("#Insight Transform File V1.0\n"), "no transform|not readable"),
        ("a.txt", lambda p: p.write_text("1 2 3\n"), "expected ITK's text .* or NiftyReg's affine"),
        ("a.txt", lambda p: p.write_text("Hello"), "expected ITK's text .* or NiftyReg's affine"),
        ("a.h5", bspline, "found a BSplineTransform, expected affine, rigid or displacement field"),
        ("a.nrrd", lambda p: p.write_text("no"), r"not readable as a transform \(.*expected a vector image"),
        ("a.mha", lambda p: vectors(p, 2), "found an image with 2 components in 3D"),
        ("a.nii.gz", lambda p: p.write_text("no"), r"not readable as a transform \(.*expected a field"),
        ("a.docx", lambda p: p.write_text("no"), "unknown transform suffix '.docx', expected one of .h5"),
        ("a.h5", lambda p: None, "no such transform file"),
    ],
)
def test_unreadable_transforms_are_named(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(InputError, match=rf"{name}: .*({message})"):
        read_transform(tmp_path / name)


def test_an_image_is_no_transform(tmp_path):
    _, moving = world_pair().write(tmp_path)
    with pytest.raises(InputError, match=r"moving\.nii\.gz: found an image of shape \(26, 32, 24\), expected a field"):
        read_transform(moving)


def test_a_field_with_nan_is_named(tmp_path):
    pair = world_pair()
    pair.field.ddf[0, 1, 3, 3, 3] = np.nan
    write_transform(tmp_path / "t.h5", Transform((pair.field,)))
    with pytest.raises(InputError, match=r"t\.h5: found NaN or infinite displacements in 1 voxels"):
        read_transform(tmp_path / "t.h5")


def test_other_dimensions_are_named(tmp_path):
    write_transform(tmp_path / "t.h5", world_pair(2).transform)
    with pytest.raises(InputError, match=r"t\.h5: found a 2D transform, expected 3D"):
        read_transform(tmp_path / "t.h5", 3)


@pytest.mark.parametrize(
    ("name", "form", "message"),
    [
        ("t.mat", "", "found a displacement field, expected an affine; write it as .h5"),
        ("t.txt", "niftyreg", "found a displacement field, expected an affine"),
        ("t.nii.gz", "", "needs the grid of the fixed image"),
        ("t.npz", "", "needs the grid of the fixed image"),
        ("t.h5", "niftyreg", r"unknown suffix '.h5' for a niftyreg transform, expected one of .nii.gz"),
        ("t.xyz", "", "unknown suffix '.xyz' for a itk transform, expected one of .h5"),
        ("t.h5", "niftireg", r"found the transform format 'niftireg' \(did you mean 'niftyreg'\?\)"),
        ("none/t.h5", "", r"none/t\.h5: cannot be written"),
    ],
)
def test_what_cannot_be_written_is_named(tmp_path, name, form, message):
    with pytest.raises(InputError, match=message):
        write_transform(tmp_path / name, world_pair().transform, form=form)
    assert list(tmp_path.iterdir()) == []
