from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from shared.losses import LandmarkLoss


def translation(*shift, size=8):
    return torch.tensor(shift).view(1, -1, *[1] * len(shift)).expand(1, -1, *[size] * len(shift))


@pytest.mark.parametrize("reduction", ["rms", "mean"])
@pytest.mark.parametrize("d", [2, 3])
def test_the_true_field_costs_nothing_and_its_gradient_is_finite(reduction, d, device, generator):
    ddf = translation(*[1.0, -2.0, 0.5][:d]).to(device).clone().requires_grad_()
    fixed = 2 + torch.randint(0, 4, (1, 9, d), generator=generator).to(device).float()
    moving = fixed + ddf.detach()[0].flatten(1)[:, 0]
    loss = LandmarkLoss(reduction)(fixed, moving, ddf)
    assert loss.item() < 1e-5
    assert torch.autograd.grad(loss, ddf)[0].isfinite().all()


def test_fixed_points_go_to_moving_points_and_not_back():
    fixed = torch.full((1, 1, 3), 4.0)
    ddf = translation(2.0, 0.0, 0.0)
    assert LandmarkLoss()(fixed, fixed + torch.tensor([2.0, 0, 0]), ddf).item() == pytest.approx(0, abs=1e-6)
    assert LandmarkLoss()(fixed, fixed - torch.tensor([2.0, 0, 0]), ddf).item() == pytest.approx(4)


def test_reductions_differ_as_they_should():
    fixed = torch.full((2, 2, 3), 4.0)
    moving = fixed.clone()
    moving[0, 0, 1] += 3  # distances 3 and 0 in sample 0, 5 and 5 in sample 1
    moving[1, :, 0] += 3
    moving[1, :, 2] += 4
    ddf = torch.zeros(2, 3, 8, 8, 8)
    assert LandmarkLoss("rms")(fixed, moving, ddf).item() == pytest.approx((4.5**0.5 + 5) / 2)
    assert LandmarkLoss("mean")(fixed, moving, ddf).item() == pytest.approx((1.5 + 5) / 2)


@pytest.mark.parametrize("reduction", ["rms", "mean"])
def test_spacing_measures_in_mm(reduction):
    fixed = torch.full((2, 1, 3), 4.0)
    moving = fixed + torch.tensor([1.0, 1.0, 0.0])
    ddf = torch.zeros(1, 3, 8, 8, 8)
    loss = LandmarkLoss(reduction)
    assert loss(fixed, moving, ddf, spacing=(3.0, 4.0, 9.0)).item() == pytest.approx(5)
    per_case = torch.tensor([[3.0, 4.0, 9.0], [0.0, 1.0, 9.0]])
    assert loss(fixed, moving, ddf, spacing=per_case).item() == pytest.approx(3)


@pytest.mark.parametrize("reduction", ["rms", "mean"])
def test_no_points_cost_nothing(reduction):
    ddf = torch.zeros(1, 2, 5, 5, requires_grad=True)
    loss = LandmarkLoss(reduction)(torch.zeros(1, 0, 2), torch.zeros(1, 0, 2), ddf)
    assert loss.item() == 0
    assert torch.autograd.grad(loss, ddf)[0].abs().max() == 0


@pytest.mark.parametrize("reduction", ["rms", "mean"])
def test_gradients(reduction, generator):
    ddf = torch.randn(2, 2, 5, 6, generator=generator, dtype=torch.float64)
    fixed, moving = 0.3 + 3 * torch.rand(2, 2, 4, 2, generator=generator, dtype=torch.float64)
    loss = LandmarkLoss(reduction)
    assert gradcheck(lambda u: loss(fixed, moving, u, spacing=(1.0, 2.5)), ddf.requires_grad_())


def test_errors():
    with pytest.raises(ValueError, match="reduction must be 'rms' or 'mean', got 'sum'"):
        LandmarkLoss("sum")
    ddf = torch.zeros(1, 3, 5, 5, 5)
    with pytest.raises(ValueError, match=r"one shape \(B, N, d\), got \(1, 4, 3\) and \(1, 5, 3\)"):
        LandmarkLoss()(torch.zeros(1, 4, 3), torch.zeros(1, 5, 3), ddf)
    with pytest.raises(ValueError, match=r"points must be floating point of shape \(B, N, 3\)"):
        LandmarkLoss()(torch.zeros(1, 4, 2), torch.zeros(1, 4, 2), ddf)
    with pytest.raises(ValueError, match=r"spacing must be \(3,\) or \(1, 3\) for these points, got \(2,\)"):
        LandmarkLoss()(torch.zeros(1, 4, 3), torch.zeros(1, 4, 3), ddf, spacing=(1.0, 1.0))
