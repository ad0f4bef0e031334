from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from shared.smoothing import gaussian_smooth


@pytest.mark.parametrize("size", [(20, 17), (12, 9, 14)])
@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.7])
def test_is_the_gaussian_of_scipy_with_the_edge_repeated(size, sigma):
    x = torch.randn(1, 2, *size, dtype=torch.float64)
    ours = gaussian_smooth(x, sigma)
    radius = int(np.ceil(3 * sigma))
    for channel in range(2):
        theirs = gaussian_filter(x[0, channel].numpy(), sigma, mode="nearest", radius=radius)
        np.testing.assert_allclose(ours[0, channel].numpy(), theirs, atol=1e-12)


def test_keeps_constants_and_leaves_the_input_alone():
    x = torch.full((1, 1, 5, 1, 7), 3.0)
    before = x.clone()
    torch.testing.assert_close(gaussian_smooth(x, 2.0), x)
    assert torch.equal(x, before)
    assert gaussian_smooth(x, 0.0) is x
