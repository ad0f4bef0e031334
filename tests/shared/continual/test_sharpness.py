"""The worst nearby point, and the rise of the loss there."""

from __future__ import annotations

import pytest
import torch

from shared.continual import loss_rise, worst_perturbation


def test_plain_step_has_the_radius_and_the_gradient_direction():
    step = worst_perturbation([torch.ones(1), torch.ones(1)], [torch.tensor([3.0]), torch.tensor([4.0])], 0.5, False)
    assert [s.item() for s in step] == pytest.approx([0.3, 0.4])


def test_adaptive_step_in_closed_form():
    """rho w^2 g / || |w| g ||, with w = (2, -1) and g = (1, 2): |w| g = (2, 2)."""
    step = worst_perturbation([torch.tensor([2.0, -1.0])], [torch.tensor([1.0, 2.0])], 0.5)
    assert step[0].tolist() == pytest.approx([0.5 * 4 / 8**0.5, 0.5 * 2 / 8**0.5])


def test_rise_of_a_linear_loss_in_closed_form():
    """loss = g.w rises by g.e = rho || |w| g ||."""
    weights, slope = [torch.tensor([2.0, -1.0], requires_grad=True)], torch.tensor([1.0, 2.0])
    assert loss_rise(weights, lambda: torch.dot(slope, weights[0]), rho=0.5) == pytest.approx(0.5 * 8**0.5)


def net(scale: float):
    """Two layers of one function: the first times ``scale``, the second divided by it."""
    generator = torch.Generator().manual_seed(0)
    first = (scale * torch.randn(5, 3, generator=generator).double()).requires_grad_()
    second = (torch.randn(1, 5, generator=generator).double() / scale).requires_grad_()
    inputs = torch.randn(3, 20, generator=generator).double()
    return [first, second], lambda: (second @ torch.relu(first @ inputs)).square().mean()


def test_rise_does_not_change_with_the_scale_of_the_layers():
    rises = [loss_rise(*net(scale), rho=0.3) for scale in (1.0, 8.0)]
    assert rises[0] > 0.01
    assert rises[1] == pytest.approx(rises[0], rel=1e-9)


def test_weights_and_gradients_are_left_as_they_were():
    weights, closure = net(0.37)
    unused = torch.ones(2, requires_grad=True)
    before = [w.detach().clone() for w in weights]
    weights[0].grad = torch.full_like(weights[0], 5.0)
    loss_rise([*weights, unused], closure)
    assert all(torch.equal(a, b) for a, b in zip(before, weights, strict=True))
    assert (weights[0].grad == 5).all()
    assert weights[1].grad is None


def test_weights_come_back_even_when_the_loss_fails():
    weights, closure = net(1.0)
    before = [w.detach().clone() for w in weights]
    calls = iter([closure])

    def failing() -> torch.Tensor:
        return next(calls)()

    with pytest.raises(StopIteration):
        loss_rise(weights, failing)
    assert all(torch.equal(a, b) for a, b in zip(before, weights, strict=True))
