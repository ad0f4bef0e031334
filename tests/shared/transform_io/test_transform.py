"""Maps between worlds: closed forms, order, inverses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import shared.transform_io.placed as module
from shared.errors import InputError
from shared.fields import identity, jacobian_determinant
from shared.transform_io import Affine, Displacement, Grid, Transform
from shared.warp import warp
from tests.world_pair import smooth_field, world_pair


def shift(*mm: float) -> Affine:
    matrix = np.eye(len(mm) + 1)
    matrix[:-1, -1] = mm
    return Affine(matrix)


@pytest.mark.parametrize("d", [2, 3])
def test_a_constant_field_moves_by_its_millimetres(d):
    pair = world_pair(d)
    mm = np.array([3.0, -2.0, 4.5])[:d]
    voxels = torch.from_numpy(np.linalg.inv(pair.fixed.affine[:d, :d]) @ mm).float()
    field = Displacement(pair.fixed, voxels.reshape(1, d, *[1] * d).expand(1, d, *pair.fixed.shape))
    moved = Transform((field,)).move(pair.points())
    assert moved.dtype == torch.float64
    np.testing.assert_allclose(moved, pair.points() + mm, atol=1e-5)


def test_nothing_moves_outside_a_field():
    grid = Grid((4, 4, 4), np.diag([2.0, 2.0, 2.0, 1.0]))
    field = Displacement(grid, torch.ones(1, 3, 4, 4, 4))
    points = torch.tensor([[3.0, 3.0, 3.0], [6.9, 3.0, 3.0], [7.1, 3.0, 3.0], [3.0, -1.1, 3.0]], dtype=torch.float64)
    moved = Transform((field,)).move(points) - points
    assert moved.tolist() == [[2, 2, 2], [2, 2, 2], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("d", [2, 3])
def test_the_first_of_a_chain_takes_a_fixed_point_first(d):
    pair = world_pair(d)
    a, b = Transform((pair.field,)), Transform((pair.affine,))
    points = pair.points()
    torch.testing.assert_close(Transform.chain([a, b]).move(points), b.move(a.move(points)))
    assert (Transform.chain([b, a]).move(points) - b.move(a.move(points))).abs().max() > 0.01


@pytest.mark.parametrize("d", [2, 3])
def test_ddf_is_the_map_voxel_by_voxel(d, monkeypatch):
    pair = world_pair(d)
    monkeypatch.setattr(module, "_AT_ONCE", 100)  # several slabs
    ddf = pair.transform.ddf(pair.fixed, pair.moving)
    assert ddf.dtype == torch.float32
    voxels = identity(pair.fixed.shape, dtype=torch.float64).flatten(1).T
    expected = pair.moving.to_voxels(pair.transform.move(pair.fixed.to_world(voxels)))
    np.testing.assert_allclose((ddf[0].flatten(1).T + voxels), expected, atol=1e-4)


def test_ddf_of_affines_alone_is_exact_and_equals_the_general_way():
    pair = world_pair()
    chain = Transform((shift(1, 2, 3), pair.affine))
    assert np.allclose(chain.affine.matrix, pair.affine.matrix @ shift(1, 2, 3).matrix)
    nothing = Displacement(pair.fixed, torch.zeros(1, 3, *pair.fixed.shape))
    general = Transform((nothing, *chain.parts)).ddf(pair.fixed, pair.moving)
    torch.testing.assert_close(chain.ddf(pair.fixed, pair.moving), general, atol=1e-4, rtol=0)


def test_displacement_is_the_whole_map_on_one_grid():
    pair = world_pair()
    whole = Transform((pair.transform.displacement(pair.fixed),))
    voxels = identity(pair.fixed.shape, dtype=torch.float64).flatten(1).T
    world = pair.fixed.to_world(voxels)
    np.testing.assert_allclose(whole.move(world), pair.transform.move(world), atol=1e-3)


@pytest.mark.parametrize("d", [2, 3])
def test_inverse_and_forward_make_the_identity(d):
    pair = world_pair(d)
    inverse, residual = pair.transform.inverse()
    voxel = min(pair.fixed.spacing_mm)
    assert 0 < residual < 0.1 * voxel
    there_and_back = inverse.move(pair.transform.move(pair.points()))
    assert (there_and_back - pair.points()).norm(dim=1).max() < 0.1 * voxel
    back_and_there = pair.transform.move(inverse.move(pair.points()))
    assert (back_and_there - pair.points()).norm(dim=1).max() < 0.1 * voxel
    assert isinstance(inverse.parts[0], Affine)  # the affine came last, so its inverse comes first
    assert inverse.inverse()[0].parts[0] is pair.field


@pytest.mark.parametrize("d", [2, 3])
def test_the_residual_is_what_the_inverse_is_off_at_and_between_its_voxels(d):
    pair = world_pair(d)
    inverse, residual = pair.field.inverse()
    voxels = identity(inverse.grid.shape, dtype=torch.float64).flatten(1).T
    world = torch.cat([inverse.grid.to_world(voxels), inverse.grid.to_world(voxels + 0.5)])
    back = inverse.move(world)
    inside = pair.fixed.holds(pair.fixed.to_voxels(back))
    off = (pair.field.move(back) - world).norm(dim=1)[inside].max()
    assert float(off) == pytest.approx(residual, abs=1e-4)


@pytest.mark.parametrize("d", [2, 3])
def test_an_inverse_on_a_lattice_is_the_inverse_at_its_points(d, monkeypatch):
    pair = world_pair(d)
    monkeypatch.setattr(module, "_AT_ONCE", 100)
    inverse, _ = pair.transform.inverse()
    voxels = identity(pair.moving.shape, dtype=torch.float64).flatten(1).T
    expected = pair.fixed.to_voxels(inverse.move(pair.moving.to_world(voxels)))
    ddf = inverse.ddf(pair.moving, pair.fixed)
    # At the edge of the field, which ends there, either side is right.
    off = (ddf[0].flatten(1).T + voxels - expected).norm(dim=1)
    assert float(off.quantile(0.99)) < 2e-3
    assert float((expected - voxels).norm(dim=1).max()) > 1


def test_a_field_that_leads_out_of_its_own_grid_is_inverted_where_it_leads():
    pair = world_pair()
    far = smooth_field(pair.fixed).ddf + torch.tensor([30.0, 0, -12.0]).reshape(1, 3, 1, 1, 1)
    forward = Transform((Displacement(pair.fixed, far),))
    inverse, residual = forward.inverse()
    assert residual < 0.1
    assert (inverse.move(forward.move(pair.points())) - pair.points()).norm(dim=1).max() < 0.1


def test_a_fold_shows_in_the_residual(generator):
    folding = 3 * torch.randn(1, 2, 16, 16, generator=generator)
    assert jacobian_determinant(folding).min() < 0
    _, residual = Displacement(Grid((16, 16), np.eye(3)), folding).inverse()
    assert residual > 0.5


@pytest.mark.parametrize("value", [1e6, float("nan"), float("inf")])
def test_an_absurd_field_has_no_inverse(value):
    field = torch.zeros(1, 3, 4, 4, 4)
    field[0, 0, 0, 0, 0] = value
    with pytest.raises(InputError, match="expected a field that an inverse exists for"):
        Displacement(Grid((4, 4, 4), np.eye(4)), field).inverse()


def test_a_singular_affine_has_no_inverse():
    with pytest.raises(InputError, match="found a singular affine"):
        Affine(np.diag([1.0, 0.0, 1.0, 1.0])).inverse()


def test_a_field_elsewhere_is_told():
    pair = world_pair()
    assert pair.transform.unreached(pair.fixed) == []
    away = Transform((shift(500, 0, 0), pair.field))
    assert away.unreached(pair.fixed) == [pair.field]


def test_parts_and_grids_of_other_dimensions_are_refused():
    pair = world_pair()
    with pytest.raises(ValueError, match="expected parts of one dimension"):
        Transform((shift(1, 2), pair.affine))
    with pytest.raises(ValueError, match="expected parts of one dimension"):
        Transform(())
    with pytest.raises(ValueError, match="expected 3D grids"):
        pair.transform.ddf(world_pair(2).fixed, pair.moving)
    with pytest.raises(ValueError, match=r"ddf must be \(1, d"):
        Displacement(pair.fixed, torch.zeros(1, 3, 4, 4, 4))


def test_composing_interpolates_the_image_once():
    pair = world_pair()
    image = torch.from_numpy(pair.image)[None, None]
    there, back = Transform((shift(0.7, 0.4, -0.6),)), Transform((shift(-0.7, -0.4, 0.6),))
    once = warp(image, Transform.chain([there, back]).ddf(pair.moving, pair.moving))
    torch.testing.assert_close(once, image, atol=1e-2, rtol=0)
    twice = warp(warp(image, back.ddf(pair.moving, pair.moving)), there.ddf(pair.moving, pair.moving))
    assert (twice - image)[0, 0, 4:-4, 4:-4, 4:-4].abs().max() > 1
