from __future__ import annotations

import pytest
import torch

from shared.optimise.discrete import coupled_convex
from shared.optimise.forces import MINDSSC
from tests.shared.optimise.scenes import picture


@pytest.mark.parametrize(("size", "shift"), [((40, 36), (3, -2)), ((24, 22, 20), (2, 0, -3))])
def test_a_shift_of_whole_voxels_is_found(size, shift):
    d = len(size)
    fixed = picture(size, seed=4, room=0.25)
    moving = torch.roll(fixed, shift, dims=tuple(range(2, 2 + d)))
    margin = [1] * d
    wide = torch.nn.functional.pad(moving, [1] * (2 * d), mode="replicate")
    weight = torch.nn.functional.pad(torch.ones_like(moving), [1] * (2 * d))
    found = coupled_convex(MINDSSC(fixed, wide, torch.ones_like(fixed), weight, margin=margin), radius=4)
    inside = fixed[0, 0] > 0.2
    for axis in range(d):
        assert float(found[0, axis][inside].mean()) == pytest.approx(shift[axis], abs=0.35)
