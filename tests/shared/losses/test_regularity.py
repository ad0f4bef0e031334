from __future__ import annotations

import monai
import pytest
import torch
from monai.losses import BendingEnergyLoss as MonaiBendingEnergyLoss
from monai.losses import DiffusionLoss
from torch.autograd import gradcheck

from shared.fields import identity
from shared.losses import BendingEnergyLoss, FoldingLoss, MembraneEnergyLoss

SIZES = [(6, 7), (6, 7, 8)]


def stretch(factor, spatial_dims, size=6):
    return (factor - 1.0) * identity([size] * spatial_dims)[None]


def quadratic(size, generator):
    """One random quadratic per component and its Hessians (d, d, d)."""
    d = len(size)
    hessian = torch.randn(d, d, d, generator=generator, dtype=torch.float64)
    hessian = hessian + hessian.transpose(1, 2)
    x = identity(size, dtype=torch.float64)
    return 0.5 * torch.einsum("cab,a...,b...->c...", hessian, x, x)[None], hessian


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("loss", [BendingEnergyLoss(), MembraneEnergyLoss(), FoldingLoss()])
def test_translation_is_free(loss, size, device):
    assert loss(torch.full((2, len(size), *size), 3.0, device=device)).item() == 0


@pytest.mark.parametrize("size", SIZES)
def test_bending_of_a_quadratic_is_its_squared_hessian(size, generator):
    field, hessian = quadratic(size, generator)
    expected = hessian.square().sum() / len(size)
    torch.testing.assert_close(BendingEnergyLoss()(field), expected)
    if monai.__version__ >= "1.6":  # older releases take other differences, and agree all the same
        torch.testing.assert_close(MonaiBendingEnergyLoss()(field), expected)


@pytest.mark.parametrize("size", SIZES)
def test_bending_takes_central_differences_twice(size, generator):
    field = torch.randn(2, len(size), *size, generator=generator, dtype=torch.float64)
    axes = range(2, field.ndim)
    expected = 0.0
    for a in axes:
        for b in axes:
            first = (field.roll(-1, a) - field.roll(1, a)) / 2
            second = (first.roll(-1, b) - first.roll(1, b)) / 2
            expected += second[(..., *[slice(2, -2)] * len(size))].square().mean()
    torch.testing.assert_close(BendingEnergyLoss()(field), expected)


@pytest.mark.parametrize("size", SIZES)
def test_affine_maps_do_not_bend(size):
    assert BendingEnergyLoss()(1.7 * identity(size, dtype=torch.float64).flip(0)[None]).item() < 1e-25


@pytest.mark.parametrize("size", SIZES)
def test_membrane_of_a_linear_field_is_its_squared_matrix(size, generator):
    d = len(size)
    matrix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    field = torch.einsum("ab,b...->a...", matrix, identity(size, dtype=torch.float64))[None]
    torch.testing.assert_close(MembraneEnergyLoss()(field), matrix.square().sum() / d)
    torch.testing.assert_close(MembraneEnergyLoss()(field), DiffusionLoss()(field))


def test_only_the_membrane_sees_an_alternating_field():
    field = (1.0 - 2.0 * (identity((8, 8, 8)).sum(0) % 2)).expand(1, 3, 8, 8, 8)
    assert BendingEnergyLoss()(field).item() == 0
    assert MembraneEnergyLoss()(field).item() == pytest.approx(12.0)


def test_membrane_of_a_flat_volume():
    field = torch.zeros(1, 3, 1, 4, 4)
    field[:, 1] = torch.arange(4.0)
    assert MembraneEnergyLoss()(field).item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_orientation_preserving_stretch_is_free(device, spatial_dims, factor):
    assert FoldingLoss()(stretch(factor, spatial_dims).to(device)).item() == 0


def test_reflection_costs_its_determinant():
    ddf = stretch(1.0, spatial_dims=3)
    ddf[:, 0] = -2 * torch.arange(6)[None, :, None, None]  # i -> -i, so det J = -1
    assert FoldingLoss()(ddf).item() == pytest.approx(1.0)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_margin_asks_for_more_than_no_folds(spatial_dims):
    shortfall = 0.9 - 0.5**spatial_dims
    assert FoldingLoss(margin=0.9)(stretch(0.5, spatial_dims)).item() == pytest.approx(shortfall)


def test_only_the_folded_part_costs():
    ddf = torch.zeros(1, 2, 12, 4)
    ddf[:, 0] = -3.0 * (torch.arange(12.0) - 6).clamp_min(0)[:, None]
    # det J: 6 rows of 1, one of -0.5 astride the kink, 5 of -2
    assert FoldingLoss()(ddf).item() == pytest.approx((0.5 + 5 * 2) / 12)


@pytest.mark.parametrize("size", [(5, 6), (5, 5, 6)])
@pytest.mark.parametrize("loss", [BendingEnergyLoss(), MembraneEnergyLoss(), FoldingLoss(margin=2.0)])
def test_gradients(loss, size, generator):
    field = torch.randn(1, len(size), *size, generator=generator, dtype=torch.float64)
    assert gradcheck(loss, field.requires_grad_())


@pytest.mark.parametrize("loss", [BendingEnergyLoss(), MembraneEnergyLoss(), FoldingLoss()])
def test_errors(loss):
    with pytest.raises(ValueError, match=r"must be \(B, d, \*S\) with d = 2 or 3 spatial dims, got \(1, 3, 6, 6\)"):
        loss(torch.zeros(1, 3, 6, 6))


def test_error_of_a_small_field():
    with pytest.raises(ValueError, match=r"at least 5 voxels along every axis, got \(4, 6\)"):
        BendingEnergyLoss()(torch.zeros(1, 2, 4, 6))
