"""Figures of sample quality: they tell sites apart, and repetition from variety."""

from __future__ import annotations

import pytest
import torch

from bundles.smdr.scripts.quality import RandomFeatures, diversity, sample_quality
from shared.errors import InputError
from tests.bundles.smdr.test_leakage import patients


def test_features_are_the_same_everywhere_and_leave_the_random_state_alone():
    before = torch.get_rng_state()
    one, two, other = RandomFeatures(), RandomFeatures(), RandomFeatures(seed=1)
    images = patients(3, 0)
    assert one(images).shape == (3, 48)
    assert torch.equal(one(images), two(images))
    assert not torch.equal(one(images), other(images))
    assert torch.equal(torch.get_rng_state(), before)
    assert RandomFeatures(2, 3)(patients(2, 0, 3, size=10, channels=2)).shape == (2, 48)


def test_images_of_the_same_site_are_nearer_than_those_of_another():
    real = patients(120, 0)
    same = sample_quality(patients(60, 1), real)
    darker = sample_quality(0.7 * patients(60, 1), real)
    noisier = sample_quality((patients(60, 1) + 0.2 * torch.randn(60, 1, 24, 24)).clamp(0, 1), real)
    assert same["fid"] < 2 * same["fid_of_real"]
    for other in (darker, noisier):
        assert other["fid"] > 3 * same["fid"]
        assert other["mmd"] > same["mmd"] + 0.5
        assert other["fid_of_real"] == same["fid_of_real"]


def test_mmd_of_shifted_features_is_the_squared_shift():
    """With a linear kernel: that of the means; here of two features in units of their deviation."""

    def corners(images):
        return images[:, 0, (0, -1), 0]

    levels = torch.rand(4000, 1, 2, 1, generator=torch.Generator().manual_seed(0))
    real = levels.repeat_interleave(4, dim=2).expand(-1, -1, -1, 8)
    quality = sample_quality(real + 0.5, real, corners)
    deviation = 1 / 12**0.5
    assert quality["mmd"] == pytest.approx(2 * (0.5 / deviation) ** 2, rel=0.02)
    assert quality["fid"] == pytest.approx(2 * (0.5 / deviation) ** 2, rel=0.02)


def test_a_generator_that_repeats_itself_shows():
    real = patients(120, 0)
    once = patients(1, 1).repeat(60, 1, 1, 1) + 0.02 * torch.randn(60, 1, 24, 24)
    quality = sample_quality(once, real)
    assert quality["ms_ssim"] > quality["ms_ssim_of_real"] + 0.2
    assert sample_quality(patients(60, 1), real)["ms_ssim"] == pytest.approx(quality["ms_ssim_of_real"], abs=0.05)


@pytest.mark.parametrize("size", [8, 14, 28, 48, 112])
def test_equal_images_are_alike_at_any_size(size):
    image = patients(1, 0, size=size).repeat(3, 1, 1, 1)
    assert diversity(image, torch.Generator().manual_seed(0), pairs=4) == pytest.approx(1, abs=1e-4)


def test_volumes_have_figures_too():
    found = sample_quality(patients(60, 1, 3, size=10), patients(120, 0, 3, size=10), RandomFeatures(1, 3))
    assert found["fid"] < 3 * found["fid_of_real"]


@pytest.mark.parametrize(("samples", "real"), [(60, 90), (40, 120)])
def test_fewer_images_than_features_are_refused(samples, real):
    with pytest.raises(InputError, match=f"found {samples} samples and {real} real images, expected more than 48"):
        sample_quality(patients(samples, 1), patients(real, 0))


def test_images_of_another_size_are_refused():
    with pytest.raises(InputError, match=r"found samples of \(1, 20, 20\), expected \(1, 24, 24\)"):
        sample_quality(patients(60, 1, size=20), patients(120, 0))


@pytest.mark.parametrize("images", [torch.zeros(1, 1, 24, 24), torch.zeros(4, 1, 24, 7)])
def test_too_few_or_too_small_images_have_no_diversity(images):
    with pytest.raises(InputError, match="expected two or more of over 7 voxels"):
        diversity(images, torch.Generator())
