"""SAM on problems whose steps can be worked out by hand."""

from __future__ import annotations

import pytest
import torch

from bundles.samcl.scripts.sam import SAM


def quadratic(weights: torch.Tensor, curvature: torch.Tensor):
    """Return weights as a parameter, an SGD optimizer and the closure of ``0.5 sum(c w^2)``."""
    parameter = torch.nn.Parameter(weights.clone())
    optimizer = torch.optim.SGD([parameter], lr=0.1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = 0.5 * (curvature * parameter**2).sum()
        loss.backward()
        return loss.detach()

    return parameter, optimizer, closure


WEIGHTS = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
CURVATURE = torch.tensor([1.0, 3.0, 10.0], dtype=torch.float64)


@pytest.mark.parametrize("adaptive", [False, True])
def test_step_is_the_gradient_at_the_climbed_point(adaptive):
    parameter, optimizer, closure = quadratic(WEIGHTS, CURVATURE)
    SAM(optimizer, rho=0.3, adaptive=adaptive).step(closure)
    gradient = CURVATURE * WEIGHTS
    if adaptive:
        climb = 0.3 * WEIGHTS**2 * gradient / torch.linalg.norm(WEIGHTS.abs() * gradient)
    else:
        climb = 0.3 * gradient / torch.linalg.norm(gradient)
    expected = WEIGHTS - 0.1 * CURVATURE * (WEIGHTS + climb)
    torch.testing.assert_close(parameter.detach(), expected, rtol=1e-9, atol=1e-9)


def test_climb_has_length_rho_and_descend_restores_bits():
    parameter, optimizer, closure = quadratic(WEIGHTS, CURVATURE)
    sam = SAM(optimizer, rho=0.3, adaptive=False)
    closure()
    saved = sam.climb()
    assert torch.linalg.norm(parameter.detach() - WEIGHTS).item() == pytest.approx(0.3)
    parameter.grad = torch.zeros_like(parameter)
    sam.descend(saved)
    assert torch.equal(parameter.detach(), WEIGHTS)


def test_rho_zero_is_the_plain_optimizer_in_one_pass():
    parameter, optimizer, closure = quadratic(WEIGHTS, CURVATURE)
    passes = []
    SAM(optimizer, rho=0.0).step(lambda: passes.append(closure()))
    assert len(passes) == 1
    torch.testing.assert_close(parameter.detach(), WEIGHTS - 0.1 * CURVATURE * WEIGHTS)


def test_returns_the_loss_before_the_climb():
    _, optimizer, closure = quadratic(WEIGHTS, CURVATURE)
    loss = SAM(optimizer, rho=0.3).step(closure)
    assert loss.item() == pytest.approx(0.5 * (CURVATURE * WEIGHTS**2).sum().item())


def test_state_dict_carries_the_moments():
    parameter = torch.nn.Parameter(WEIGHTS.clone())
    first = SAM(torch.optim.Adam([parameter], lr=0.1), rho=0.1)
    first.step(lambda: (parameter**2).sum().backward())
    second = SAM(torch.optim.Adam([parameter], lr=0.1), rho=0.1)
    second.load_state_dict(first.state_dict())
    moment = second.optimizer.state[parameter]["exp_avg"]
    assert torch.equal(moment, first.optimizer.state[parameter]["exp_avg"])
    assert moment.abs().sum() > 0


def test_negative_rho_is_refused():
    with pytest.raises(ValueError, match="rho -1"):
        SAM(torch.optim.SGD([torch.nn.Parameter(WEIGHTS)], lr=1), rho=-1)
