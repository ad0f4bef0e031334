"""Image files of every kind lie in the same place of the world, in their own type."""

from __future__ import annotations

import locale

import itk
import nibabel as nib
import numpy as np
import pytest

from shared.data.images import read_grid, read_voxels
from shared.errors import InputError
from shared.transform_io import IMAGE_SUFFIXES, Grid, image_name, read_with_itk, write_image, write_nifti
from tests.dicom_series import write_dicom
from tests.learn2reg_folder import affine, blobs, save
from tests.world_pair import world_pair


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_what_is_written_comes_back(tmp_path, d, suffix, dtype):
    pair = world_pair(d)
    voxels = np.digitize(pair.image, [30, 60]).astype(dtype)
    write_image(tmp_path / f"a{suffix}", voxels, pair.moving)
    back, grid = read_voxels(tmp_path / f"a{suffix}", None)
    assert back.dtype == voxels.dtype
    np.testing.assert_array_equal(back, voxels)
    assert grid.shape == pair.moving.shape
    np.testing.assert_allclose(grid.affine, pair.moving.affine, atol=1e-4)
    through_itk, itk_grid, count = read_with_itk(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(through_itk, voxels)
    np.testing.assert_allclose(itk_grid.affine, pair.moving.affine, atol=1e-4)
    assert count == 1
    assert len(list(tmp_path.iterdir())) == (2 if suffix == ".mhd" else 1)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
@pytest.mark.parametrize(
    ("dtype", "stored"),
    [("bool", "uint8"), ("int64", "int32"), ("uint64", "int32"), ("int8", "int16"), ("float16", "float32")],
)
def test_rare_types_become_the_nearest_common_one(tmp_path, suffix, dtype, stored):
    pair = world_pair()
    voxels = (pair.image > 40).astype(dtype)
    write_image(tmp_path / f"a{suffix}", voxels, pair.moving)
    back, _ = read_voxels(tmp_path / f"a{suffix}")
    assert back.dtype == stored
    np.testing.assert_array_equal(back, voxels)


def test_what_cannot_be_written_is_named(tmp_path):
    pair = world_pair()
    with pytest.raises(InputError, match=r"a\.png: unknown image suffix '\.png', expected one of \.nii, \.nii\.gz"):
        write_image(tmp_path / "a.png", pair.image, pair.moving)
    huge = np.full(pair.moving.shape, 2**40)
    with pytest.raises(
        InputError, match=r"a\.nrrd: found the value 1099511627776, expected whole numbers within int32"
    ):
        write_image(tmp_path / "a.nrrd", huge, pair.moving)
    with pytest.raises(InputError, match=r"a\.mha: cannot be written"):
        write_image(tmp_path / "none" / "a.mha", pair.image, pair.moving)
    assert list(tmp_path.iterdir()) == []


# -- DICOM -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def volume(tmp_path):
    """Return an oblique CT-like volume as ITK holds it, and as we do."""
    world = affine((0.9, 1.2, 2.5), (-20, 5, 11), degrees=17, order=(0, 1, 2), flip=(-1, -1, 1))
    voxels = (10 * blobs((8, 9, 7)) - 500).astype(np.int16)
    file = save(tmp_path / "volume.nii.gz", voxels, world)
    return itk.imread(str(file)), voxels, world


def test_a_dicom_folder_is_one_image(tmp_path, volume):
    image, voxels, world = volume
    write_dicom(tmp_path / "dicom", image, "5")
    before = locale.setlocale(locale.LC_ALL)
    back, grid = read_voxels(tmp_path / "dicom")
    assert locale.setlocale(locale.LC_ALL) == before, "ITK's DICOM reader changes it for the whole process"
    np.testing.assert_array_equal(back, voxels)
    np.testing.assert_allclose(grid.affine, world, atol=1e-3)
    assert read_grid(tmp_path / "dicom", None).shape == voxels.shape


def test_several_series_or_none_are_named(tmp_path, volume):
    write_dicom(tmp_path / "dicom", volume[0], "5")
    write_dicom(tmp_path / "dicom", volume[0], "6")
    with pytest.raises(InputError, match=r"dicom: found 2 DICOM series, expected a folder of exactly one\n  7 files"):
        read_voxels(tmp_path / "dicom")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: found 0 DICOM series"):
        read_voxels(tmp_path / "empty")


def test_a_missing_slice_is_named(tmp_path, volume):
    write_dicom(tmp_path / "dicom", volume[0], "5", skip=3)
    with pytest.raises(
        InputError, match=r"dicom: found slices at uneven distances \(off by 2 mm\), expected a complete DICOM"
    ):
        read_voxels(tmp_path / "dicom")


# -- colour and time ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["nii.gz", "nrrd"])
def test_a_frame_of_a_series(tmp_path, suffix):
    frames = np.stack([blobs((6, 7, 8), seed=s) for s in range(3)], -1)
    path = save(tmp_path / "t.nii.gz", frames, affine((2, 3, 4)))
    if suffix == "nrrd":
        itk.imwrite(itk.imread(str(path)), str(tmp_path / "t.nrrd"))
        path = tmp_path / "t.nrrd"
    voxels, grid = read_voxels(path, None, frame=1)
    np.testing.assert_array_equal(voxels, frames[..., 1])
    np.testing.assert_allclose(grid.affine, affine((2, 3, 4)), atol=1e-5)
    with pytest.raises(InputError, match=r"found a 4D image .*pick one time frame or channel \(frame: 0\.\.2\)"):
        read_voxels(path)
    with pytest.raises(InputError, match=r"found 3 frames, expected frame to be one of 0\.\.2, got 3"):
        read_voxels(path, frame=3)


def test_colour_is_named(tmp_path):
    colours = np.zeros((5, 6, 7), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colours, np.eye(4)), tmp_path / "rgb.nii.gz")
    image = itk.Image[itk.RGBPixel[itk.UC], 3].New()
    image.SetRegions([5, 6, 7])
    image.Allocate()
    itk.imwrite(image, str(tmp_path / "rgb.nrrd"))
    for name in ("rgb.nii.gz", "rgb.nrrd"):
        with pytest.raises(InputError, match=rf"{name}: found several values a voxel \(colour or vectors\)"):
            read_voxels(tmp_path / name)


def test_a_smooth_field_is_stored_and_one_with_much_air_is_compressed(tmp_path):
    grid = Grid((40, 40, 40), affine((1, 1, 1)))
    smooth = np.random.default_rng(0).normal(size=grid.shape).astype(np.float32).cumsum(0).cumsum(1).cumsum(2)
    bounded = np.where(np.indices(grid.shape)[0] < 30, np.float32(0), smooth)
    sizes = {}
    for name, field in (("smooth", smooth), ("bounded", bounded), ("labels", (bounded > 0).astype(np.uint8))):
        write_nifti(tmp_path / f"{name}.nii.gz", field, grid)
        np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / f"{name}.nii.gz").dataobj), field)
        sizes[name] = (tmp_path / f"{name}.nii.gz").stat().st_size / field.nbytes
    # Stored: its own size, 352 bytes of header, and a few for every 64 kB.
    assert 1 <= sizes["smooth"] < 1.01
    assert sizes["bounded"] < 0.3
    assert sizes["labels"] < 0.3


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("F.nii.gz", "F"),
        ("a.b.NII", "a.b"),
        ("eye.png", "eye"),
        ("scan.nrrd", "scan"),
        ("1.2.840.7", "1.2.840.7"),
        ("scan.gz", "scan.gz"),
    ],
)
def test_names_lose_the_suffix_of_an_image_only(tmp_path, name, expected):
    assert image_name(tmp_path / name) == expected


def test_a_folder_keeps_its_name(tmp_path):
    (tmp_path / "series.dcm").mkdir()
    assert image_name(tmp_path / "series.dcm") == "series.dcm"
