"""Votes of several label maps."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from shared.atlas import fuse_labels, local_similarity


def test_the_majority_wins_and_a_draw_goes_to_the_lowest_label():
    maps = [np.array([[1, 2, 3, 0]]), np.array([[1, 2, 2, 5]]), np.array([[4, 0, 1, 5]])]
    assert fuse_labels(maps).tolist() == [[1, 2, 1, 5]]


def test_weights_outvote_the_majority():
    maps = [np.array([[7, 7]]), np.array([[3, 3]]), np.array([[3, 3]])]
    weights = [np.array([[1.0, 0.1]]), np.array([[0.2, 0.2]]), np.array([[0.3, 0.3]])]
    assert fuse_labels(maps, weights).tolist() == [[7, 3]]


def test_where_nothing_is_alike_the_majority_decides():
    maps = [np.array([[7]]), np.array([[3]]), np.array([[3]])]
    assert fuse_labels(maps, [np.zeros((1, 1))] * 3).tolist() == [[3]]


@pytest.mark.parametrize("shape", [(40, 9), (37, 5, 6)])
def test_slabs_make_no_difference(shape):
    rng = np.random.default_rng(0)
    maps = [rng.integers(0, 4, shape).astype(np.uint8) for _ in range(5)]
    votes = np.stack([(np.stack(maps) == value).sum(0) for value in range(4)])
    fused = fuse_labels(maps)
    assert fused.dtype == np.uint8
    assert np.array_equal(fused, votes.argmax(0))


@pytest.mark.parametrize("first", [0, 5, 16, 20, 33])
def test_similarity_is_the_same_at_the_seams_of_slabs(first):
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal((2, 60, 9)) + 100
    whole, part = local_similarity(x, y), local_similarity(x[first:], y[first:])
    np.testing.assert_allclose(part[3:], whole[first + 3 :], atol=1e-6)


@pytest.mark.parametrize("d", [2, 3])
def test_similarity_is_the_squared_correlation_around_a_voxel(d):
    rng = np.random.default_rng(1)
    x = gaussian_filter(rng.standard_normal((15,) * d), 1)
    y = gaussian_filter(rng.standard_normal((15,) * d), 1)
    window = (slice(4, 11),) * d
    expected = np.corrcoef(x[window].ravel(), y[window].ravel())[0, 1] ** 2
    assert local_similarity(x, y)[(7,) * d] == pytest.approx(expected, rel=1e-4)


def test_similarity_knows_neither_brightness_nor_contrast_and_nothing_flat():
    x = np.random.default_rng(2).standard_normal((20, 20))
    assert local_similarity(x, 1000 - 30 * x).min() == pytest.approx(1, abs=1e-5)
    x[:10] = 5
    assert (local_similarity(x, x)[:6] == 0).all()


def test_the_atlas_that_is_alike_wins_where_it_is():
    """Each of two atlases shows half of the image; a third one agrees with nothing."""
    rng = np.random.default_rng(3)
    image = gaussian_filter(rng.standard_normal((40, 40)), 1)
    noise = [gaussian_filter(rng.standard_normal((40, 40)), 1) for _ in range(3)]
    left = np.arange(40)[:, None] < 20
    atlases = [np.where(left, image, noise[0]), np.where(left, noise[1], image), noise[2]]
    labels = [np.full((40, 40), value) for value in (1, 2, 3)]
    fused = fuse_labels(labels, [local_similarity(image, atlas) for atlas in atlases])
    assert (fused[:16] == 1).mean() > 0.95
    assert (fused[24:] == 2).mean() > 0.95
