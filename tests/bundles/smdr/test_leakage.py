"""The leak test finds copies, however they are dressed, and nothing among strangers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bundles.smdr.scripts.leakage import LeakFilter, RealImages, leak_test
from shared.errors import InputError


def patients(count, seed, spatial_dims=2, size=24, channels=1):
    """Smooth random images in [0, 1]."""
    random = torch.Generator().manual_seed(seed)
    knots = torch.rand(count, channels, *[6] * spatial_dims, generator=random)
    mode = "bilinear" if spatial_dims == 2 else "trilinear"
    return F.interpolate(knots, size=(size,) * spatial_dims, mode=mode, align_corners=True)


def noisy(images):
    return images + 0.05 * torch.randn(images.shape, generator=torch.Generator().manual_seed(9))


DRESSES = {
    "as it is": lambda x: x,
    "noisy": noisy,
    "dim": lambda x: 0.3 * x + 0.4,
    "mirrored": lambda x: x.flip(-1),
    "turned over": lambda x: x.flip((-1, -2)),
    "blurred": lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
}


@pytest.mark.parametrize("dress", DRESSES)
def test_a_copy_is_found_in_any_dress(dress):
    training, held_out, samples = patients(40, 0), patients(30, 1), patients(12, 2)
    samples[4] = DRESSES[dress](training[17:18])[0]
    found = leak_test(samples, training, held_out)
    assert found.suspects() == [4]
    assert int(found.training[4]) == 17
    assert float(found.to_training[4]) < 0.35
    assert found.summary()["suspects"] == 1
    assert found.summary()["lowest_ratio"] == pytest.approx(float(found.ratio[4]), abs=1e-4)


def test_a_copy_of_a_held_out_image_is_no_leak():
    training, held_out, samples = patients(40, 0), patients(30, 1), patients(12, 2)
    samples[4] = held_out[3]
    found = leak_test(samples, training, held_out)
    assert found.suspects() == []
    assert int(found.held_out[4]) == 3
    assert float(found.ratio[4]) > 10


def test_strangers_are_as_near_to_either_set_as_chance_has_it():
    found = leak_test(patients(300, 2), patients(60, 0), patients(20, 1))
    summary = found.summary()
    assert summary["suspects"] == 0
    assert summary["expected_nearer"] == 0.75
    assert summary["nearer_to_training"] == pytest.approx(0.75, abs=0.1)
    assert summary["median_distance"] == pytest.approx(summary["median_distance_of_held_out"], rel=0.1)


def test_a_generator_that_knows_its_images_by_heart_shows():
    training = patients(60, 0)
    summary = leak_test(noisy(training), training, patients(60, 1)).summary()
    assert summary["suspects"] == 60
    assert summary["nearer_to_training"] == 1.0
    assert summary["median_distance"] < 0.3 * summary["median_distance_of_held_out"]


def test_distances_are_root_mean_squares_of_normalised_images():
    one = torch.zeros(1, 1, 8, 8)
    one[..., :4] = 1
    two = torch.zeros(1, 1, 8, 8)
    two[:, :, :4] = 1
    found = leak_test(one, one, two, sigma=0)
    assert float(found.to_training[0]) == pytest.approx(0, abs=1e-6)
    assert float(found.to_held_out[0]) == pytest.approx(2**0.5)  # half of the voxels differ by 2


def test_volumes_and_channels_are_compared_too():
    training = patients(6, 0, spatial_dims=3, size=10, channels=2)
    samples = patients(3, 2, spatial_dims=3, size=10, channels=2)
    samples[1] = training[5].flip(2)
    found = leak_test(samples, training, patients(6, 1, spatial_dims=3, size=10, channels=2), size=5)
    assert found.suspects() == [1]


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (torch.zeros(0, 1, 24, 24), "found 0 training images"),
        (torch.zeros(3, 1, 16, 24), r"training images of \(1, 16, 24\), expected one or more of \(1, 24, 24\)"),
    ],
)
def test_sets_that_do_not_compare_are_refused(training, message):
    with pytest.raises(InputError, match=message):
        leak_test(patients(2, 0), training, patients(2, 1))


def test_the_filter_finds_what_the_test_finds():
    training, held_out, samples = patients(40, 0), patients(30, 1), patients(12, 2)
    samples[4], samples[7] = noisy(training[17:18])[0], held_out[3]
    near = LeakFilter(training, held_out)(samples)
    assert [number for number, found in enumerate(near) if found] == [4]
    everything = LeakFilter(training, held_out, threshold=100)(samples)
    assert everything == [float(ratio) < 100 for ratio in leak_test(samples, training, held_out).ratio]
    assert not everything[7]


@pytest.mark.parametrize("threshold", [0, -1.0, "null"])
def test_a_threshold_that_is_no_number_above_zero_is_refused(threshold):
    with pytest.raises(InputError, match=f"found leak_threshold {threshold!r}, expected a number above 0, or "):
        LeakFilter(patients(2, 0), patients(2, 1), threshold)


def test_the_filter_refuses_images_of_other_sizes():
    with pytest.raises(InputError, match="found 0 held-out images"):
        LeakFilter(patients(2, 0), patients(0, 1))
    with pytest.raises(InputError, match=r"found 3 samples of \(1, 16, 16\), expected one or more of \(1, 24, 24\)"):
        LeakFilter(patients(2, 0), patients(2, 1))(patients(3, 2, size=16))


def test_real_images_are_read_when_they_are_asked_for_and_once():
    read = []

    def dataset(items):
        read.append(list(items))
        return [{"image": patients(1, item)[0]} for item in items]

    real = RealImages(dataset, lambda: [0, 1, 2], [3, 4])
    assert real.leak_filter(None) is None
    assert read == []
    assert real.leak_filter(0.25).threshold == 0.25
    assert [len(real.training), len(real.held_out)] == [3, 2]
    assert read == [[0, 1, 2], [3, 4]]
    assert real.leak_filter()(patients(1, 1)) == [True]
