from __future__ import annotations

import pytest
import torch

from shared.networks import VoxelMorphDiff


@pytest.mark.parametrize("size", [(16, 16, 16), (9, 17, 12), (20, 11)])
def test_any_size_comes_back_and_untrained_it_is_the_identity(size):
    network = VoxelMorphDiff(len(size), channels=(4, 4, 4, 4), final=(4,))
    dvf = network(torch.rand(2, 2, *size))
    assert dvf.shape == (2, len(size), *size)
    assert not dvf.any()


def test_it_learns():
    network = VoxelMorphDiff(2, channels=(4, 4), final=(4,))
    torch.nn.init.normal_(network.head.conv.weight)
    network(torch.rand(1, 2, 8, 8)).square().mean().backward()
    assert not [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
