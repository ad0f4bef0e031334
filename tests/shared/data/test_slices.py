"""Volumes to slices and back: geometry against nibabel and MONAI, round trips through awkward affines."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import CenterSpatialCrop, SpatialPad

from shared.data.intensity import scale_percentiles
from shared.data.resampling import resample
from shared.data.slices import adjacent_slices, label_on_image, predict_volume, slice_axis, slice_grid, slice_window
from shared.transform_io import Grid
from tests.learn2reg_folder import affine, blobs

OBLIQUE = Grid((20, 24, 9), affine((1.5, 1.0, 4.0), (-20, 5, 11), degrees=12))


@pytest.mark.parametrize(
    ("shape", "spacing", "expected"),
    [
        ((9, 9, 9), (1, 1, 3), 2),
        ((9, 9, 9), (3, 1, 1), 0),
        ((9, 9, 9), (1, 2, 1), 1),
        ((9, 9, 9), (1, 1, 1), 2),
        ((9, 9, 9), (1.001, 1, 1), 2),
        ((9, 9, 9), (1, 1, 0.9999), 2),
        ((9, 1, 9), (5, 1, 1), 1),
        ((9, 9, 1), (1, 1, 0.1), 2),
    ],
)
def test_slices_lie_across_the_largest_spacing(shape, spacing, expected):
    assert slice_axis(Grid(shape, affine(spacing))) == expected


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, 1, -1)])
def test_axes_come_in_ras_order_with_the_slices_last_however_they_are_stored(order, flip):
    spacing = [1.0, 1.25, 4.0]  # of x, y, z: axial slices
    shape = tuple((16, 20, 6)[a] for a in order)
    image = Grid(shape, affine([spacing[a] for a in order], (3, -4, 5), order=order, flip=flip))
    grid = slice_grid(image, (8, 10))
    assert grid.shape == (8, 10, 6)
    np.testing.assert_allclose(grid.affine[:3, :3], np.diag([2.0, 2.5, 4.0]), atol=1e-9)
    centres = [g.affine[:3, :3] @ ((np.array(g.shape) - 1) / 2) + g.affine[:3, 3] for g in (image, grid)]
    np.testing.assert_allclose(*centres, atol=1e-9)


def test_sagittal_slices_keep_their_plane():
    grid = slice_grid(Grid((5, 16, 20), affine((4.0, 1.0, 1.0))), (16, 20))
    assert grid.shape == (16, 20, 5)
    assert nib.aff2axcodes(grid.affine) == ("A", "S", "R")


@pytest.mark.parametrize(("size", "spacing"), [((12, 30), (1.5, 1.0)), ((32, 8), (1.5, 1.0))])
def test_with_the_images_own_spacing_slices_are_cropped_and_padded_around_the_centre(size, spacing):
    volume = torch.from_numpy(blobs(OBLIQUE.shape))[None]
    placed = resample(volume, OBLIQUE, slice_grid(OBLIQUE, size, spacing))
    expected = SpatialPad((*size, 9))(CenterSpatialCrop((*size, 9))(volume))
    torch.testing.assert_close(placed, torch.as_tensor(np.asarray(expected)), atol=1e-3, rtol=0)


def test_a_third_spacing_makes_new_slices():
    grid = slice_grid(OBLIQUE, (10, 12), (3.0, 2.0, 3.0))
    assert grid.shape == (10, 12, 12)
    np.testing.assert_allclose(grid.spacing_mm, (3, 2, 3))


def test_without_spacing_the_field_of_view_is_kept():
    grid = slice_grid(OBLIQUE, (40, 12))
    np.testing.assert_allclose(np.array(grid.shape) * grid.spacing_mm, np.array(OBLIQUE.shape) * OBLIQUE.spacing_mm)


def test_slices_themselves_are_not_interpolated_across():
    volume = torch.zeros(1, *OBLIQUE.shape)
    volume[..., 4] = 1
    placed = resample(volume, OBLIQUE, slice_grid(OBLIQUE, (10, 12)))
    assert placed[..., 4][:, 2:-2, 2:-2].min() > 0.999
    assert placed[..., [3, 5]].abs().max() < 1e-4


@pytest.mark.parametrize("count", [1, 3, 5])
def test_adjacent_slices_are_channels_and_the_ends_repeat(count):
    volume = torch.arange(2 * 4).view(2, 1, 1, 4) * 10 + torch.zeros(2, 3, 5, 1)
    stack = adjacent_slices(volume, count)
    assert stack.shape == (4, 2 * count, 3, 5)
    for z, offset, channel in itertools.product(range(4), range(count), range(2)):
        source = min(max(z + offset - count // 2, 0), 3)
        assert torch.equal(stack[z, 2 * offset + channel], volume[channel, :, :, source])


def test_an_even_number_of_slices_has_no_middle():
    with pytest.raises(ValueError, match="found 2 slices at once, expected an odd number"):
        adjacent_slices(torch.zeros(1, 2, 2, 3), 2)


def test_a_window_beyond_the_end_repeats_the_last_slice():
    volume = torch.arange(3.0).expand(1, 2, 2, 3)
    assert slice_window(volume, 1, 4)[0, 0, 0].tolist() == [1, 2, 2, 2]


def test_2d_prediction_puts_every_slice_back_in_its_place():
    volume = torch.rand(1, 6, 5, 7)

    def network(image):  # the middle of three channels decides
        return torch.stack([-40 * (image[:, 1] - 0.5), 40 * (image[:, 1] - 0.5)], dim=1)

    probabilities = predict_volume(network, volume, slices=3, batch_size=3)
    assert probabilities.shape == (2, 6, 5, 7)
    torch.testing.assert_close(probabilities[1], torch.sigmoid(80 * (volume[0] - 0.5)))


@pytest.mark.parametrize("slices", [3, 4, 9])
def test_3d_prediction_covers_volumes_of_any_depth(slices):
    volume = torch.rand(1, 6, 5, slices)
    seen = []

    def network(image):
        seen.append(image.shape[1:])
        return torch.cat([-image, image], dim=1)

    probabilities = predict_volume(network, volume, depth=4)
    assert set(seen) == {(1, 6, 5, 4)}
    torch.testing.assert_close(probabilities[1], torch.sigmoid(2 * volume[0]))


@pytest.mark.parametrize("kind", ["label", "probabilities"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_a_label_map_survives_the_way_there_and_back(kind, order):
    spacing = [(1.5, 1.2, 4.0)[a] for a in order]
    image = Grid(tuple((24, 26, 8)[a] for a in order), affine(spacing, (9, 8, 7), 10, order=order, flip=(1, -1, 1)))
    truth = torch.from_numpy(np.digitize(blobs(image.shape), [35, 70])).to(torch.int16)[None]
    network = slice_grid(image, (48, 52))
    placed = resample(truth, image, network, mode="nearest")
    if kind == "probabilities":
        placed = torch.stack([(placed[0] == v).float() for v in range(3)])
    back = label_on_image(placed, network, image)
    assert back.shape == truth.shape
    assert back.dtype == torch.int16
    assert (back == truth).float().mean() > 0.999


def test_probabilities_are_interpolated_before_the_largest_wins():
    image = Grid((9, 4, 4), affine((0.5, 1, 4)))
    network = Grid((5, 4, 4), affine((1, 1, 4)))
    share = torch.tensor([0.0, 0.1, 0.4, 0.9, 1.0]).view(5, 1, 1).expand(5, 4, 4)
    label = label_on_image(torch.stack([1 - share, share]), network, image)
    # Linear shares at half voxels are 0, .05, .1, .25, .4, .65, .9, .95, 1: a nearest voxel would start one later.
    assert label[0, :, 1, 1].tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]


def test_where_the_network_has_not_looked_lies_background():
    image = Grid((20, 20, 4), affine((1, 1, 4)))
    network = slice_grid(image, (10, 10), (1.0, 1.0))
    ones = torch.ones(1, *network.shape, dtype=torch.int16)
    certain = torch.stack([torch.zeros(network.shape), torch.ones(network.shape)])
    for prediction in (ones, certain):
        label = label_on_image(prediction, network, image)[0]
        assert label[5:15, 5:15].eq(1).all()
        label[5:15, 5:15] = 0
        assert not label.any()


def test_an_enlarged_image_is_bright_up_to_its_edge():
    image = Grid((4, 4, 3), affine((2, 2, 4)))
    placed = resample(torch.ones(1, 4, 4, 3), image, slice_grid(image, (12, 12)))
    assert placed.eq(1).all()
    assert resample(torch.ones(1, 4, 4, 3), image, slice_grid(image, (10, 8), (1.0, 1.0)))[0, 1:9].eq(1).all()
    assert resample(torch.ones(1, 4, 4, 3), image, slice_grid(image, (10, 8), (1.0, 1.0)))[0, [0, 9]].eq(0).all()


def test_percentiles_clip_outliers_and_fill_the_range():
    image = torch.from_numpy(blobs()).clone()[None]
    image[0, 0, 0, 0] = 1e6
    scaled = scale_percentiles(image)
    low, high = np.percentile(image.numpy(), (0.5, 99.5))
    expected = ((image - low) / (high - low)).clamp(0, 1).float()
    torch.testing.assert_close(scaled, expected)
    assert (scaled == 1).float().mean() == pytest.approx(0.005, abs=0.002)
    speck = torch.zeros(1, 20, 20, 20)
    speck[0, 3, 3, 3] = 7
    assert scale_percentiles(speck).max() == 1


def test_channels_are_scaled_together_unless_asked_otherwise():
    image = torch.stack([torch.from_numpy(blobs()), 10 * torch.from_numpy(blobs(seed=1))])
    together, apart = scale_percentiles(image), scale_percentiles(image, channel_wise=True)
    assert together[0].max() < 0.2
    assert apart.amax(dim=(1, 2, 3)).tolist() == [1, 1]
