"""Every format gives the same voxels in the same world; everything else stops at the door."""

from __future__ import annotations

import warnings

import itk
import nibabel as nib
import numpy as np
import pytest
import torch

from shared.data.images import read_grid, read_image, read_label, read_points
from shared.errors import InputError
from shared.transform_io import read_with_itk
from tests.learn2reg_folder import affine, blobs, save

OBLIQUE = affine((1.5, 2.0, 3.0), (-20, 5, 11), degrees=17, order=(2, 0, 1), flip=(-1, 1, -1))
SHAPE = (6, 7, 8)


@pytest.mark.parametrize("suffix", ["nrrd", "mha", "mhd", "nii"])
def test_every_format_has_the_world_geometry_of_the_nifti(tmp_path, suffix):
    path = save(tmp_path / "a.nii.gz", blobs(SHAPE), OBLIQUE)
    itk.imwrite(itk.imread(str(path)), str(tmp_path / f"b.{suffix}"))
    voxels, grid = read_image(path)
    other_voxels, other_grid = read_image(tmp_path / f"b.{suffix}")
    torch.testing.assert_close(other_voxels, voxels)
    assert other_grid.shape == grid.shape == SHAPE
    np.testing.assert_allclose(grid.affine, OBLIQUE, atol=1e-5)
    np.testing.assert_allclose(other_grid.affine, grid.affine, atol=1e-4)
    np.testing.assert_allclose(read_grid(tmp_path / f"b.{suffix}").affine, grid.affine, atol=1e-4)


@pytest.mark.parametrize("suffix", ["nrrd", "mha", "nii.gz"])
def test_2d_formats_agree(tmp_path, suffix):
    image = itk.image_from_array(np.ascontiguousarray(blobs((6, 9)).T))
    image.SetSpacing([2.0, 3.0])
    image.SetOrigin([10.0, -20.0])
    itk.imwrite(image, str(tmp_path / f"a.{suffix}"))
    voxels, grid = read_image(tmp_path / f"a.{suffix}", spatial_dims=2)
    torch.testing.assert_close(voxels[0], torch.from_numpy(blobs((6, 9))))
    np.testing.assert_allclose(grid.affine, [[-2, 0, -10], [0, -3, 20], [0, 0, 1]])


@pytest.mark.parametrize(("shape", "dims"), [((6, 7, 8, 1), 3), ((6, 7, 1), 2), ((6, 7, 1, 1), 2), ((6, 7), 2)])
def test_trailing_axes_of_one_voxel_do_not_count(tmp_path, shape, dims):
    path = save(tmp_path / "a.nii.gz", blobs(shape[:dims]).reshape(shape))
    voxels, grid = read_image(path, dims)
    assert voxels.shape == (1, *shape[:dims])
    assert voxels.dtype == torch.float32
    assert grid.shape == read_grid(path, dims).shape == shape[:dims]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_type_and_byte_order_reads_as_image_and_label(tmp_path, dtype, order):
    values = np.digitize(blobs(SHAPE), [20, 50, 80]).astype(np.dtype(dtype).newbyteorder(order))
    header = nib.Nifti1Header(endianness=order)
    header.set_data_dtype(values.dtype)
    nib.save(nib.Nifti1Image(values, affine(), header), tmp_path / "a.nii.gz")
    voxels, grid = read_image(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(voxels[0].numpy(), values)
    label = read_label(tmp_path / "a.nii.gz", grid)
    assert label.dtype == torch.int16
    np.testing.assert_array_equal(label[0].numpy(), values)


def test_scaled_integers_are_unscaled(tmp_path):
    image = nib.Nifti1Image(blobs(SHAPE).astype(np.int16), affine())
    image.header.set_slope_inter(2.0, -1000.0)
    nib.save(image, tmp_path / "a.nii.gz")
    expected = np.asanyarray(nib.load(tmp_path / "a.nii.gz").dataobj)
    voxels, _ = read_image(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(voxels[0].numpy(), expected, rtol=1e-6)


def test_whole_numbers_stored_as_float_are_a_label(tmp_path):
    values = np.digitize(blobs(SHAPE), [50]).astype(np.float32)
    path = save(tmp_path / "a.nii.gz", values)
    assert read_label(path, read_grid(path)).unique().tolist() == [0, 1]


def test_a_label_elsewhere_in_the_world_is_reported(tmp_path):
    image = read_grid(save(tmp_path / "image.nii.gz", blobs(SHAPE), affine()))
    values = np.digitize(blobs(SHAPE), [50]).astype(np.uint8)
    with pytest.warns(UserWarning, match=r"label\.nii\.gz: this label lies elsewhere in the world"):
        read_label(save(tmp_path / "label.nii.gz", values, affine(flip=(-1, 1, 1))), image)
    almost = affine(origin_mm=(0.1, 0, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_label(save(tmp_path / "label.nii.gz", values, almost), image)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("flip", [(-1, 1, 1), (1, -1, -1)])
def test_a_label_with_other_axes_is_reordered(tmp_path, order, flip):
    world = affine((2.0, 2.5, 3.0), degrees=20)
    image = read_grid(save(tmp_path / "image.nii.gz", blobs(SHAPE), world))
    values = np.digitize(blobs(SHAPE), [20, 50, 80]).astype(np.uint8)
    stored = values.transpose(order)[tuple(slice(None, None, step) for step in flip)]
    # Voxel of the file -> voxel of the image.
    matrix = np.zeros((4, 4))
    for axis, (source, step) in enumerate(zip(order, flip, strict=True)):
        matrix[source, axis], matrix[source, 3] = step, 0 if step > 0 else SHAPE[source] - 1
    matrix[3, 3] = 1
    with pytest.warns(UserWarning, match=r"label\.nii\.gz: this label is stored with other axes than its image"):
        label = read_label(save(tmp_path / "label.nii.gz", stored, world @ matrix), image)
    np.testing.assert_array_equal(label[0].numpy(), values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full(SHAPE, 0.5, np.float32), r"fractional values in 336 voxels of a label"),
        (np.full(SHAPE, -1, np.int16), r"label values -1\.\.-1, expected 0\.\.32767"),
        (np.full(SHAPE, 40000, np.int32), r"label values 40000\.\.40000, expected 0\.\.32767"),
        (np.full(SHAPE, np.nan, np.float32), r"NaN or infinite values in a label"),
        (np.zeros((6, 7, 9), np.uint8), r"label of size \(6, 7, 9\), expected its image's size \(6, 7, 8\)"),
    ],
)
def test_bad_labels_are_named(tmp_path, values, message):
    grid = read_grid(save(tmp_path / "image.nii.gz", blobs(SHAPE)))
    with pytest.raises(InputError, match=r"label\.nii\.gz: .*" + message):
        read_label(save(tmp_path / "label.nii.gz", values), grid)


def test_points_come_back(tmp_path):
    (tmp_path / "a.csv").write_text("1,2,3\n4.5,5,6e0\n")
    assert read_points(tmp_path / "a.csv").tolist() == [[1, 2, 3], [4.5, 5, 6]]
    (tmp_path / "a.csv").write_text("1, 2\n")
    assert read_points(tmp_path / "a.csv", 2).tolist() == [[1, 2]]


@pytest.mark.filterwarnings("ignore:loadtxt")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,y,z\n1,2,3\n", "not readable as points"),
        ("1 2 3\n", "not readable as points"),
        ("1,2,3\n4,5\n", "not readable as points"),
        ("1,2\n", r"found \(1, 2\) values, expected finite numbers in 3 columns"),
        ("", r"expected finite numbers in 3 columns"),
        ("1,2,nan\n", r"expected finite numbers in 3 columns"),
    ],
)
def test_bad_points_are_named(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=r"a\.csv: .*" + message):
        read_points(tmp_path / "a.csv")


@pytest.mark.parametrize("name", ["missing.csv", "folder"])
def test_points_that_are_no_file_are_named(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=rf"{name}: "):
        read_points(tmp_path / name)


# -- frames in NIfTI headers -------------------------------------------------------------------------------------------


def with_frames(path, sform, s_code, qform, q_code, unit="mm"):
    image = nib.Nifti1Image(blobs(SHAPE), sform)
    image.set_sform(sform, code=s_code)
    image.set_qform(qform, code=q_code)
    image.header.set_xyzt_units(unit)
    nib.save(image, path)
    return path


@pytest.mark.parametrize(("unit", "length"), [("micron", 0.001), ("meter", 1000.0), ("mm", 1.0), ("unknown", 1.0)])
def test_lengths_are_millimetres_whatever_the_header_counts_in(tmp_path, unit, length):
    world = affine((2.0, 2.5, 3.0), (5, -7, 9), degrees=20)
    path = with_frames(tmp_path / "a.nii.gz", world, 1, world, 1, unit)
    expected = world.copy()
    expected[:3] *= length
    np.testing.assert_allclose(read_grid(path).affine, expected, rtol=1e-5)
    np.testing.assert_allclose(read_with_itk(path)[1].affine, expected, rtol=1e-4)


def moved(by: float) -> np.ndarray:
    world = affine((2.0, 2.0, 2.0))
    world[0, 3] += by
    return world


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ((1, 1), "the sform is taken, ITK and ANTs take it too"),
        ((2, 1), "the sform is taken, ITK and ANTs take the qform"),
        ((0, 0), "found a header without a frame"),
    ],
)
def test_two_frames_or_none_are_told(tmp_path, codes, message):
    path = with_frames(tmp_path / "a.nii.gz", moved(50), codes[0], moved(0), codes[1])
    with pytest.warns(UserWarning, match=r"a\.nii\.gz: " + f".*{message}"):
        grid = read_grid(path)
    theirs = read_with_itk(path)[1]
    assert np.allclose(grid.affine, theirs.affine) == (codes == (1, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_grid(with_frames(tmp_path / "b.nii.gz", moved(0.01), 2, moved(0), 1))
        read_grid(with_frames(tmp_path / "c.nii.gz", moved(50), 2, moved(0), 0))
