from __future__ import annotations

import numpy as np
import pytest
import torch

from shared.errors import InputError
from shared.register.inputs import Pair, Side
from shared.register.memory import check_memory, thin_grid, thinned
from tests.shared.register.pairs import plain_grid


def side(shape, **more) -> Side:
    grid = plain_grid(shape)
    world = grid.to_world(
        torch.stack(torch.meshgrid(*[torch.arange(n) for n in shape], indexing="ij"), -1).flatten(0, -2)
    )
    # The image holds the world's first coordinate: a mean keeps it true.
    return Side("image", world[:, 0].reshape(1, 1, *shape).float(), grid, **more)


@pytest.mark.parametrize("shape", [(12, 9), (8, 12, 10)])
@pytest.mark.parametrize("k", [2, 3])
def test_thinned_images_stay_in_their_place(shape, k):
    small = thinned(side(shape), k)
    assert small.grid.shape == tuple(-(-n // k) for n in shape)
    assert small.image.shape == (1, 1, *small.grid.shape)
    whole = shape[0] // k
    expected = small.grid.affine[0, 0] * np.arange(whole) + small.grid.affine[0, -1]
    np.testing.assert_allclose(small.image[0, 0].flatten(1)[:whole, 0].numpy(), expected, atol=1e-5)
    assert thinned(side(shape), 1).image.shape == (1, 1, *shape)


def test_masks_grow_and_labels_stay_labels():
    mask = torch.zeros(1, 1, 6, 6, dtype=torch.int16)
    mask[0, 0, 0, 0] = 1
    label = np.arange(36, dtype=np.uint8).reshape(6, 6)
    small = thinned(side((6, 6), mask=mask, label=label), 2)
    assert small.mask[0, 0].tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert small.label.dtype == np.uint8
    assert small.label.tolist() == label[1::2, 1::2].tolist()


def test_blocks_reach_over_the_edge():
    grid = thin_grid(plain_grid((5, 4)), 2)
    assert grid.shape == (3, 2)
    np.testing.assert_allclose(grid.affine, [[4, 0, 1], [0, 4, 1], [0, 0, 1]])


def test_what_a_pair_takes_decides():
    pair = Pair(side((60, 60, 60)), side((50, 50, 50)))
    assert check_memory(pair, 8.0) == (1, "")
    k, message = check_memory(pair, 0.115)
    assert k == 2
    assert message.startswith("this pair takes about 0.13 GB, 0.12 GB are free")
    labelled = Pair(side((60, 60, 60), label=np.ones((60, 60, 60), np.uint8)), side((50, 50, 50)))
    assert [check_memory(p, 0.131)[0] for p in (pair, labelled)] == [1, 2]
    with pytest.raises(InputError, match=r"image \(60, 60, 60\).*expected smaller images or more memory"):
        check_memory(pair, 0.05)
