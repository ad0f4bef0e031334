from __future__ import annotations

import numpy as np
import pytest
import torch

from shared.optimise.lattice import carry, coarser, padded, place, reach, thinned
from shared.transform_io import Grid
from tests.shared.optimise.scenes import grid_of


def world_ramp(grid: Grid) -> torch.Tensor:
    """An image whose value is linear in the world."""
    d = len(grid.shape)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), axis=-1)
    world = index @ grid.affine[:d, :d].T + grid.affine[:d, d]
    return torch.from_numpy(world @ np.array([1.0, -2.0, 0.5][:d])).float()[None, None]


def test_coarser_keeps_centre_axes_and_thick_slices():
    grid = grid_of((40, 31, 10), (1.0, 1.0, 5.0), (3.0, -7.0, 2.0))
    coarse = coarser(grid, 2.0)
    assert coarse.shape == (20, 16, 10)
    assert coarse.spacing_mm == pytest.approx((2.0, 2.0, 5.0))
    for g in (grid, coarse):
        centre = g.affine[:3, :3] @ ((np.array(g.shape) - 1) / 2) + g.affine[:3, 3]
        assert centre == pytest.approx([22.5, 8.0, 24.5])
    assert coarser(grid, 0.5).key == grid.key


def oblique(grid: Grid, angle: float) -> Grid:
    affine = grid.affine.copy()
    turn = np.eye(len(affine) - 1)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine[:-1, :-1] = turn @ affine[:-1, :-1]
    return Grid(grid.shape, affine)


@pytest.mark.parametrize("size", [(30, 26), (30, 26, 22)])
@pytest.mark.parametrize("how", ["shifted", "flipped", "permuted", "oblique"])
def test_place_finds_the_same_world_points(size, how):
    d = len(size)
    source = grid_of(size, [1.0] * d)
    # Three sigmas and more inside the source, where the blur keeps a ramp.
    target = grid_of([9] * d, [1.5] * d, [4.2] * d)
    if how == "flipped":
        target.affine[0, 0] *= -1
        target.affine[0, d] = 22.0
    if how == "permuted":
        target.affine[:d, :d] = target.affine[:d, :d][:, [*range(1, d), 0]]
    if how == "oblique":
        target = oblique(target, 0.3)
        target.affine[:d, d] += [3.0, -1.0, 0.0][:d]
    placed = place(world_ramp(source), source, target)
    torch.testing.assert_close(placed, world_ramp(target), atol=2e-3, rtol=0)


def test_place_follows_a_displacement():
    source, target = grid_of((30, 26)), grid_of((10, 10), (1.5, 1.5), (7.2, 7.2))
    shift = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1).expand(1, 2, 10, 10)
    moved = Grid(target.shape, target.affine @ np.array([[1, 0, 2.0], [0, 1, -1.0], [0, 0, 1]]))
    placed = place(world_ramp(source), source, target, shift.contiguous())
    torch.testing.assert_close(placed, world_ramp(moved), atol=2e-3, rtol=0)


def test_thinned_image_is_blurred_by_half_a_voxel_of_the_level():
    image = torch.zeros(1, 1, 41, 41)
    image[0, 0, 20, 20] = 1.0
    for spacing, sigma in ((1.0, 0.5), (4.0, 2.0)):
        thin, grid = thinned(image, grid_of((41, 41)), spacing)
        profile = thin[0, 0].sum(1).double()
        at = torch.arange(len(profile), dtype=torch.float64)
        at = grid.affine[0, 0] * at + grid.affine[0, 2]
        mean = (profile * at).sum() / profile.sum()
        width = float(((profile * (at - mean) ** 2).sum() / profile.sum()).sqrt())
        assert mean == pytest.approx(20.0, abs=1e-3)
        # Sampling between voxels widens it a little more.
        assert sigma * 0.9 < width < sigma * 1.35


def test_carry_scales_vectors_and_keeps_linear_fields():
    coarse = coarser(grid_of((40, 30)), 2.0)
    fine = grid_of((40, 30))
    i = torch.arange(20.0)[:, None].expand(20, 15)
    field = torch.stack([0.1 * i, -0.2 * i])[None]
    carried = carry(field, coarse, fine)
    assert carried.shape == (1, 2, 40, 30)
    # Voxel 10 of the fine lattice lies at voxel 4.75 of the coarse one.
    assert carried[0, :, 10, 7].tolist() == pytest.approx([0.95, -1.9], abs=1e-5)
    assert torch.equal(field, torch.stack([0.1 * i, -0.2 * i])[None])


def test_reach_is_the_field_of_view():
    source, target = grid_of((6, 6)), padded(grid_of((6, 6)), (2, 1))
    assert target.shape == (10, 8)
    view = reach(source, target)
    assert view.sum() == 36
    assert view[0, 0, 2:8, 1:7].all()
