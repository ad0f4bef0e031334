"""Reptile's interpolation."""

from __future__ import annotations

import pytest
import torch

from shared.continual import interpolate


@pytest.mark.parametrize(("beta", "expected"), [(0.0, 2.0), (0.25, 3.0), (1.0, 6.0)])
def test_weights_go_beta_of_the_way(beta, expected):
    weight = torch.tensor([6.0], requires_grad=True)
    view = weight.detach()
    interpolate([weight], [torch.tensor([2.0])], beta)
    assert view.item() == expected  # in place


def test_whole_way_keeps_the_bits(generator):
    weights, start = torch.randn(100, generator=generator), torch.randn(100, generator=generator)
    before = weights.clone()
    interpolate([weights], [start], 1.0)
    assert torch.equal(before, weights)
