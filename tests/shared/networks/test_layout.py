"""Channels last for large volumes: same numbers, kept through a whole network."""

import pytest
import torch

from bundles.samcl.scripts.network import LKUNet
from shared.networks.layout import in_layout_of, quick_layout

LAST = torch.channels_last_3d


def test_only_large_volumes_change_their_layout():
    small, large = torch.rand(1, 2, 4, 4, 4), torch.rand(1, 2, 4, 4, 5)
    assert quick_layout(small, large=80) is small
    assert quick_layout(large, large=80).is_contiguous(memory_format=LAST)
    torch.testing.assert_close(quick_layout(large, large=80), large, rtol=0, atol=0)


def test_images_in_2d_stay():
    image = torch.rand(1, 2, 9, 9)
    assert quick_layout(image, large=1) is image
    assert in_layout_of(image, image) is image


@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST])
def test_a_tensor_takes_the_layout_of_another(layout):
    reference = torch.rand(1, 3, 4, 4, 4).contiguous(memory_format=layout)
    taken = in_layout_of(reference, torch.rand(1, 5, 4, 4, 4))
    assert taken.is_contiguous(memory_format=layout)


def test_a_network_keeps_it_to_the_last_convolution_and_computes_the_same(monkeypatch):
    torch.manual_seed(0)
    network = LKUNet(3, channels=2, depth=2)
    torch.nn.init.normal_(network.head.conv.weight)
    image = torch.rand(1, 2, 8, 8, 8)
    seen = []
    network.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].is_contiguous(memory_format=LAST)))
    results = []
    for large in (10**9, 1):
        monkeypatch.setattr("bundles.samcl.scripts.network.quick_layout", lambda x, n=large: quick_layout(x, n))
        network.zero_grad()
        out = network(image)
        out.square().sum().backward()
        results.append([out, *(p.grad.clone() for p in network.parameters())])
    assert seen == [False, True]
    for plain, last in zip(*results, strict=True):
        torch.testing.assert_close(last, plain, rtol=1e-3, atol=1e-5)
