"""The frozen copy of a network."""

from __future__ import annotations

import torch
from torch import nn

from shared.continual import frozen_copy


def test_a_frozen_copy_has_the_weights_given_and_stays(generator):
    network = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5))
    given = {k: torch.randn(v.shape, generator=generator) for k, v in network.state_dict().items()}
    teacher = frozen_copy(network, given)
    assert network.training
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in network.parameters())
    with torch.no_grad():
        network[0].weight.fill_(7.0)
    assert all(torch.equal(v, given[k]) for k, v in teacher.state_dict().items())
