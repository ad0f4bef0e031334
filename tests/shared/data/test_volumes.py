"""Volumes with channels and single slices: the same voxels in the same world from every format."""

from __future__ import annotations

import itk
import nibabel as nib
import numpy as np
import pytest
import torch

from shared.data.volumes import read_volume, read_volume_grid, read_volume_label
from shared.errors import InputError
from tests.bad_files import BAD_IMAGES, BAD_LABELS, LABEL
from tests.learn2reg_folder import SIZE, affine, blobs, save

OBLIQUE = affine((1.5, 2.0, 3.0), (-20, 5, 11), degrees=17, order=(2, 0, 1), flip=(-1, 1, -1))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((6, 7, 8), (1, 6, 7, 8)),
        ((6, 7, 8, 3), (3, 6, 7, 8)),
        ((6, 7, 1, 3), (3, 6, 7, 1)),
        ((6, 7, 8, 1, 3), (3, 6, 7, 8)),
        ((6, 7, 1), (1, 6, 7, 1)),
        ((6, 7), (1, 6, 7, 1)),
    ],
)
def test_channels_are_the_last_axis(tmp_path, shape, expected):
    voxels = np.random.default_rng(0).uniform(0, 9, shape).astype(np.float32)
    path = save(tmp_path / "a.nii.gz", voxels, OBLIQUE)
    image, grid = read_volume(path)
    assert image.shape == expected
    assert image.dtype == torch.float32
    assert grid.shape == read_volume_grid(path).shape == expected[1:]
    np.testing.assert_allclose(grid.affine, OBLIQUE, atol=1e-5)
    for channel in range(expected[0]):
        flat = voxels.reshape(*expected[1:], -1)[..., channel]
        np.testing.assert_array_equal(image[channel].numpy(), flat)


def test_the_colour_type_of_nifti_is_three_channels(tmp_path):
    colours = np.random.default_rng(0).integers(0, 255, (6, 7, 2, 3)).astype(np.uint8)
    packed = colours.view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    nib.save(nib.Nifti1Image(packed, OBLIQUE), tmp_path / "a.nii.gz")
    image, _ = read_volume(tmp_path / "a.nii.gz", channels=3)
    np.testing.assert_array_equal(image.numpy(), np.moveaxis(colours, -1, 0))


def test_photographs_in_png(tmp_path):
    colours = np.random.default_rng(0).integers(0, 255, (5, 4, 3)).astype(np.uint8)
    image = itk.image_from_array(colours, is_vector=True)
    image.SetSpacing([0.5, 0.25])
    itk.imwrite(image, str(tmp_path / "a.png"))
    voxels, grid = read_volume(tmp_path / "a.png", channels=3)
    assert grid.shape == read_volume_grid(tmp_path / "a.png").shape == (4, 5, 1)
    np.testing.assert_array_equal(voxels[..., 0].numpy(), colours.transpose(2, 1, 0))
    np.testing.assert_allclose(grid.spacing_mm, (0.5, 0.25, 1), atol=1e-3)


@pytest.mark.parametrize("name", [n for n in BAD_IMAGES if n not in ("2D", "one slice", "4D", "complex")])
def test_unusable_images_are_named(tmp_path, name):
    write, message = BAD_IMAGES[name]
    write(tmp_path / "bad.nii.gz")
    with pytest.raises(InputError, match=f"bad.nii.gz: .*{message}"):
        read_volume(tmp_path / "bad.nii.gz")


@pytest.mark.parametrize("name", BAD_LABELS)
def test_unusable_label_maps_are_named(tmp_path, name):
    write, message = BAD_LABELS[name]
    image = read_volume_grid(save(tmp_path / "image.nii.gz", blobs()))
    write(tmp_path / "bad.nii.gz", "label")
    with pytest.raises(InputError, match=f"bad.nii.gz: .*{message.replace('{role}', 'label')}"):
        read_volume_label(tmp_path / "bad.nii.gz", image)


@pytest.mark.parametrize(("found", "expected"), [(2, 1), (1, 3)])
def test_another_number_of_channels_is_named(tmp_path, found, expected):
    voxels = np.stack([blobs(seed=c) for c in range(found)], -1)
    path = save(tmp_path / "a.nii.gz", voxels[..., 0] if found == 1 else voxels)
    with pytest.raises(InputError, match=rf"a\.nii\.gz: found {found} channels, expected {expected}"):
        read_volume(path, channels=expected)


def test_complex_lines_and_label_maps_of_colours_are_named(tmp_path):
    with pytest.raises(InputError, match="found complex64 voxels, expected real channels"):
        read_volume(save(tmp_path / "a.nii.gz", blobs().astype(np.complex64)))
    with pytest.raises(InputError, match=r"found an image of shape \(7,\), expected slices"):
        read_volume(save(tmp_path / "b.nii.gz", np.arange(7, dtype=np.float32)))
    grid = read_volume_grid(save(tmp_path / "image.nii.gz", blobs()))
    path = save(tmp_path / "label.nii.gz", np.stack([LABEL, LABEL], -1))
    with pytest.raises(InputError, match="found a label map of 2 channels, expected one"):
        read_volume_label(path, grid)


def test_a_label_map_elsewhere_in_the_world_is_refused(tmp_path):
    grid = read_volume_grid(save(tmp_path / "image.nii.gz", blobs(), affine((2, 2, 2))))
    near = save(tmp_path / "near.nii.gz", LABEL, affine((2, 2, 2), (0.5, 0, 0)))
    assert read_volume_label(near, grid).shape == (1, *SIZE)
    for matrix in (affine((2, 2, 2), (5, 0, 0)), affine((2, 2, 2), flip=(-1, 1, 1))):
        path = save(tmp_path / "far.nii.gz", LABEL, matrix)
        with pytest.raises(
            InputError, match=r"far\.nii\.gz: found a label that lies elsewhere in the world than its im"
        ):
            read_volume_label(path, grid)
