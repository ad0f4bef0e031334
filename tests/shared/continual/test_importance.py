"""The penalty around an anchor, and where its importance comes from."""

from __future__ import annotations

import pytest
import torch

from shared.continual import accumulate, add_penalty_gradient, add_to_path, path_importance, quadratic_penalty


def some(generator, *shapes):
    return [torch.rand(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def test_penalty_is_zero_at_the_anchor(generator):
    weights, importance = some(generator, (3, 2), (4,)), some(generator, (3, 2), (4,))
    assert quadratic_penalty(weights, weights, importance) == 0


def test_penalty_in_closed_form():
    weights, anchor = [torch.tensor([3.0]), torch.tensor([1.0, 1.0])], [torch.tensor([1.0]), torch.tensor([1.0, 0.0])]
    importance = [torch.tensor([5.0]), torch.tensor([7.0, 2.0])]
    assert quadratic_penalty(weights, anchor, importance) == (5 * 4 + 0 + 2 * 1) / 2


def test_gradient_is_that_of_the_penalty(generator):
    """Against autograd, on top of a gradient that is there already, and where there is none."""
    weights = [w.requires_grad_() for w in some(generator, (3, 2), (4,))]
    anchor, importance = some(generator, (3, 2), (4,)), some(generator, (3, 2), (4,))
    terms = [(i * (w - a) ** 2).sum() for w, a, i in zip(weights, anchor, importance, strict=True)]
    expected = torch.autograd.grad(3.0 * sum(terms) / 2, weights)
    weights[0].grad = torch.ones_like(weights[0])
    add_penalty_gradient(weights, anchor, importance, strength=3.0)
    torch.testing.assert_close(weights[0].grad, 1 + expected[0])
    torch.testing.assert_close(weights[1].grad, expected[1])


def test_accumulation_decays_the_past():
    first = accumulate([], [torch.tensor([4.0])], 0.5)
    assert first[0] == 4
    assert accumulate(first, [torch.tensor([1.0])], 0.5)[0] == 3
    assert first[0] == 4


def test_path_integral_is_the_loss_that_was_lost(generator):
    """Gradient descent in small steps on a quadratic: the paths of all weights add up to the decrease."""
    curvature = some(generator, (6,), (2, 3))
    weights = [w.requires_grad_() for w in some(generator, (6,), (2, 3))]

    def loss() -> torch.Tensor:
        return sum((c * w**2).sum() / 2 for c, w in zip(curvature, weights, strict=True))

    path = [torch.zeros_like(w) for w in weights]
    start = loss().item()
    for _ in range(1000):
        gradients = torch.autograd.grad(loss(), weights)
        before = [w.detach().clone() for w in weights]
        with torch.no_grad():
            torch._foreach_add_(weights, gradients, alpha=-1e-3)
        add_to_path(path, gradients, before, [w.detach() for w in weights])
    decrease = start - loss().item()
    assert decrease > 0.1
    assert sum(float(p.sum()) for p in path) == pytest.approx(decrease, rel=1e-3)


def test_path_importance_in_closed_form():
    path, start, end = [torch.tensor([6.0, -1.0, 2.0])], [torch.zeros(3)], [torch.tensor([1.0, 1.0, 0.0])]
    assert path_importance(path, start, end, damping=0.5)[0].tolist() == [4.0, 0.0, 4.0]
