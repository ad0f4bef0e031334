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
    inside = fixed[0, 0] > 0.4
    for axis in range(d):
        assert float(found[0, axis][inside].mean()) == pytest.approx(shift[axis], abs=0.35)


def test_a_thin_slab_is_not_moved_out_of_itself():
    fixed = picture((30, 28, 9), seed=4, room=0.25)[..., 3:6].contiguous()
    moving = torch.roll(fixed, 2, dims=2)
    pad = torch.nn.functional.pad
    wide, weight = pad(moving, [1] * 6, mode="replicate"), pad(torch.ones_like(moving), [1] * 6)
    similarity = MINDSSC(fixed, wide, torch.ones_like(fixed), weight, margin=[1, 1, 1])
    found = coupled_convex(similarity, radius=4)
    assert float(similarity.warped(found)[1].mean()) > 0.6
    assert float(found[0, 0][fixed[0, 0] > 0.4].mean()) == pytest.approx(2.0, abs=0.5)
    assert float(found[0, 2].abs().max()) <= 1.5
