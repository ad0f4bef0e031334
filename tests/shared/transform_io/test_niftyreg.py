"""NiftyReg's layout: absolute RAS positions, told by the header."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from shared.errors import InputError
from shared.transform_io import Transform, read_transform, write_transform
from tests.world_pair import world_pair


@pytest.mark.parametrize("d", [2, 3])
def test_the_file_holds_the_place_of_each_fixed_voxel_in_the_moving_world(tmp_path, d):
    pair = world_pair(d)
    write_transform(tmp_path / "t.nii.gz", pair.transform, pair.fixed, form="niftyreg")
    image = nib.load(tmp_path / "t.nii.gz")
    assert image.shape == (*pair.fixed.shape, *[1] * (4 - d), d)
    assert image.header.get_intent()[2] == "NREG_TRANS"
    assert (int(image.header["intent_code"]), float(image.header["intent_p1"])) == (1007, 0)
    positions = np.asarray(image.dataobj).reshape(*pair.fixed.shape, d)
    # What NiftyReg does: read the moving image at these positions, through its own affine.
    voxels = (positions - pair.moving.affine[:d, d]) @ np.linalg.inv(pair.moving.affine[:d, :d]).T
    theirs = map_coordinates(pair.image, np.moveaxis(voxels, -1, 0), order=1)
    ddf = pair.transform.ddf(pair.fixed, pair.moving)[0].numpy()
    identity = np.stack(np.meshgrid(*[np.arange(n) for n in pair.fixed.shape], indexing="ij"))
    ours = map_coordinates(pair.image, identity + ddf, order=1)
    assert np.abs(ours - theirs)[pair.interior(pair.transform)].max() < 1e-3 * np.ptp(pair.image)


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("kind", [0, 1])
def test_deformations_and_displacements_come_back(tmp_path, d, kind):
    pair = world_pair(d)
    write_transform(tmp_path / "t.nii", pair.transform, pair.fixed, form="niftyreg")
    if kind == 1:
        image = nib.load(tmp_path / "t.nii")
        fixed = np.stack(np.meshgrid(*[np.arange(n) for n in pair.fixed.shape], indexing="ij"), -1)
        world = fixed @ pair.fixed.affine[:d, :d].T + pair.fixed.affine[:d, d]
        image.header["intent_p1"] = 1
        values = np.asarray(image.dataobj) - world.reshape(image.shape).astype(np.float32)
        nib.save(nib.Nifti1Image(values, None, image.header), tmp_path / "t.nii")
    back = read_transform(tmp_path / "t.nii", d)
    expected = Transform((pair.transform.displacement(pair.fixed),)).move(pair.points())
    np.testing.assert_allclose(back.move(pair.points()), expected, atol=1e-4)


@pytest.mark.parametrize("d", [2, 3])
def test_an_affine_is_a_ras_matrix_as_text(tmp_path, d):
    pair = world_pair(d)
    write_transform(tmp_path / "a.txt", Transform((pair.affine,)), form="niftyreg")
    written = np.loadtxt(tmp_path / "a.txt")
    assert written.shape == (4, 4)
    np.testing.assert_array_equal(written[:d, 3], pair.affine.matrix[:d, d])
    np.testing.assert_array_equal(read_transform(tmp_path / "a.txt", d).affine.matrix, pair.affine.matrix)


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        (2, (4, 4, 4, 1, 3), "found a NiftyReg cubic spline grid, .*reg_transform -ref FIXED -def"),
        (5, (4, 4, 4, 1, 3), "found a NiftyReg spline velocity grid"),
        (9, (4, 4, 4, 1, 3), "found a NiftyReg transform of unknown kind"),
        (0, (4, 4, 4), r"found a NiftyReg field of shape \(4, 4, 4\)"),
        (0, (4, 4, 4, 2, 3), r"found a NiftyReg field of shape"),
    ],
)
def test_what_is_no_field_is_named(tmp_path, kind, shape, message):
    image = nib.Nifti1Image(np.zeros(shape, np.float32), np.eye(4))
    image.header.set_intent("vector", name="NREG_TRANS")
    image.header["intent_p1"] = kind
    nib.save(image, tmp_path / "t.nii")
    with pytest.raises(InputError, match=r"t\.nii: " + message):
        read_transform(tmp_path / "t.nii")
