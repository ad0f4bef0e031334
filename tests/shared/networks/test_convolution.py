from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from shared.networks.convolution import Conv3, SeparableConv3


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("depth", [2, 3, 8, 9])
def test_convolution_in_halves_is_the_convolution(depth, stride):
    torch.manual_seed(0)
    conv = Conv3(3, 3, 4, stride=stride).double()
    image = torch.rand(1, 3, depth, 6, 7, dtype=torch.float64, requires_grad=True)
    expected = F.conv3d(image, conv.conv.weight, conv.conv.bias, stride=stride, padding=1)
    torch.testing.assert_close(conv(image), expected)
    if depth > stride:
        assert conv._in_halves(image, (depth - 1) // stride + 1).shape == expected.shape
    (gradient,) = torch.autograd.grad(conv(image).square().sum(), image)
    (reference,) = torch.autograd.grad(expected.square().sum(), image)
    torch.testing.assert_close(gradient, reference)


def test_small_single_volumes_avoid_the_slow_convolution():
    """The reason for the halves; fails when torch no longer needs them, or when the limit has moved."""
    from torch.profiler import ProfilerActivity, profile

    def kernels(call) -> set[str]:
        with profile(activities=[ProfilerActivity.CPU]) as record:
            call()
        return {event.key for event in record.key_averages()}

    conv, image = Conv3(3, 8, 8), torch.rand(1, 8, 16, 16, 16)
    assert not any("slow_conv3d" in k for k in kernels(lambda: conv(image)))


@pytest.mark.parametrize("dims", [2, 3])
def test_separable_kernel_is_a_product_of_two(dims):
    torch.manual_seed(0)
    conv = SeparableConv3(dims, 3, 4).double()
    x = torch.rand(2, 3, *(6, 5, 7)[:dims], dtype=torch.float64)
    kernel = torch.einsum("oi...,i...->oi...", conv.mix.weight.expand(4, 3, *[3] * dims), conv.each.weight[:, 0])
    convolve = F.conv3d if dims == 3 else F.conv2d
    torch.testing.assert_close(conv(x), convolve(x, kernel, conv.mix.bias, padding=1))
