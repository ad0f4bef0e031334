"""The LKU-Net: construction, shapes, and that its short cuts are exact."""

from __future__ import annotations

import pytest
import torch

from bundles.samcl.scripts.layers import LargeKernelBlock
from bundles.samcl.scripts.network import LKUNet


def wake(network: LKUNet) -> LKUNet:
    """Give the zero head weights, so that the output depends on everything."""
    torch.nn.init.normal_(network.head.conv.weight, std=0.1)
    return network


def test_paper_network_has_its_number_of_parameters():
    network = LKUNet(spatial_dims=3, channels=16, depth=4)
    assert sum(p.numel() for p in network.parameters()) == 8_187_014


@pytest.mark.parametrize("half_resolution", [False, True])
@pytest.mark.parametrize(("dims", "size"), [(2, (21, 34)), (3, (17, 12, 20)), (3, (5, 3, 9))])
def test_any_size_gives_a_velocity_of_that_size(dims, size, half_resolution):
    network = wake(LKUNet(dims, channels=2, depth=2, half_resolution=half_resolution))
    dvf = network(torch.rand(2, 2, *size))
    assert dvf.shape == (2, dims, *size)
    assert dvf.abs().sum() > 0


def test_is_the_identity_before_training():
    assert LKUNet(3, channels=2, depth=2)(torch.rand(1, 2, 8, 8, 8)).abs().max() == 0


@pytest.mark.parametrize("half_resolution", [False, True])
@pytest.mark.parametrize(("dims", "size"), [(2, (13, 22)), (3, (11, 14, 9))])
def test_torchscript_computes_the_same(dims, size, half_resolution):
    network = wake(LKUNet(dims, channels=2, depth=2, half_resolution=half_resolution)).eval()
    image = torch.rand(1, 2, *size)
    torch.testing.assert_close(torch.jit.script(network)(image), network(image))


@pytest.mark.parametrize("dims", [2, 3])
def test_merged_kernels_are_the_sum_of_the_branches(dims):
    torch.manual_seed(0)
    block = LargeKernelBlock(dims, 3).double()
    for bias in (block.conv1.bias, block.conv3.bias, block.conv5.bias):
        torch.nn.init.normal_(bias)
    x = torch.rand(2, 3, *(6, 5, 7)[:dims], dtype=torch.float64)
    expected = block.activation(block.conv3(x) + block.conv1(x) + block.conv5(x) + x)
    torch.testing.assert_close(block(x), expected)
    block(x).sum().backward()
    assert all(p.grad is not None for p in block.parameters())


def test_padding_does_not_shift():
    """A network of centred operations on a centred blob must answer with a centred field."""
    network = LKUNet(2, channels=2, depth=1)
    for module in network.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)):
            torch.nn.init.constant_(module.weight, 0.1)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
    image = torch.zeros(1, 2, 15, 15)
    image[..., 7, 7] = 1
    response = network(image)[0, 0]
    ij = torch.stack(torch.meshgrid(torch.arange(15.0), torch.arange(15.0), indexing="ij"))
    centre = (ij * response).sum((1, 2)) / response.sum()
    assert (centre - 7).abs().max() < 1


@pytest.mark.parametrize("options", [{"spatial_dims": 4}, {"depth": 0}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match="expected 2 or 3"):
        LKUNet(**options)
