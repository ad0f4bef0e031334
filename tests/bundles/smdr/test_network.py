"""The segmenter: one tensor in, one of the same size out."""

from __future__ import annotations

import io

import pytest
import torch

from bundles.smdr.scripts.network import SliceUNet, image_channels


@pytest.mark.parametrize(
    ("spatial_dims", "size", "options"),
    [
        (2, (32, 32), {}),
        (2, (50, 37), {"channels": 3, "slices": 1, "classes": 3}),
        (2, (33, 20), {"channels": 2, "slices": 5}),
        (2, (1, 1), {}),
        (2, (16, 5), {}),
        (3, (18, 21, 7), {"widths": (4, 8, 16), "classes": 4}),
    ],
)
def test_scores_have_the_size_of_the_image(device, spatial_dims, size, options):
    torch.manual_seed(0)
    network = SliceUNet(spatial_dims, **options).to(device).eval()
    channels = image_channels(network.channels, network.slices, spatial_dims)
    image = torch.rand(2, channels, *size, device=device)
    scores = network(image)
    assert scores.shape == (2, options.get("classes", 2), *size)
    scripted = torch.jit.script(network)
    torch.testing.assert_close(scripted(image), scores)


@pytest.mark.parametrize(("spatial_dims", "expected"), [(2, 10), (3, 2)])
def test_only_slices_bring_their_neighbours_as_channels(spatial_dims, expected):
    assert image_channels(2, 5, spatial_dims) == expected


def test_every_class_score_depends_on_every_channel():
    torch.manual_seed(0)
    network = SliceUNet(2, channels=2, slices=3, classes=3, widths=(4, 8))
    image = torch.rand(1, 6, 16, 16, requires_grad=True)
    for value in range(3):
        (slope,) = torch.autograd.grad(network(image)[:, value].sum(), image)
        assert (slope.abs().sum(dim=(0, 2, 3)) > 0).all()


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_default_weights_are_small_enough_for_a_repository(spatial_dims):
    stream = io.BytesIO()
    torch.save(SliceUNet(spatial_dims).state_dict(), stream)
    assert len(stream.getvalue()) < 25e6


def test_no_statistics_of_a_site_stay_in_the_network():
    assert not list(SliceUNet().buffers())


def test_paper_size():
    assert sum(p.numel() for p in SliceUNet(widths=(32, 64, 128, 256, 512)).parameters()) == 6_501_341


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spatial_dims": 1}, "found spatial_dims 1"),
        ({"widths": (8,)}, r"widths \[8\].* at least two widths"),
        ({"classes": 1}, "classes 1, expected"),
        ({"slices": 2}, "found slices 2, expected an odd number"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SliceUNet(**options)
