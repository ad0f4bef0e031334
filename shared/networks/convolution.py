"""A convolution that avoids a slow path of torch, and its depthwise-separable relative."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

__all__ = ["Conv3", "SeparableConv3"]


class Conv3(nn.Module):
    """Convolution with kernel 3 and "same" padding.

    For one small volume on the CPU the depth is cut into two overlapping halves that go in as a batch of two: the
    same numbers, but through oneDNN (2.6 times faster at 32^3 and 8 channels).
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, stride: int = 1, bias: bool = True
    ) -> None:
        super().__init__()
        self.spatial_dims, self.stride = spatial_dims, stride
        # Below this N * C * D * H, torch on the CPU leaves oneDNN for `slow_conv3d` when N = 1 and the kernel is 3^3.
        self.slow_limit = 20480
        conv = Conv[Conv.CONV, spatial_dims]
        self.conv = conv(in_channels, out_channels, 3, stride=stride, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, *ceil(S / stride))."""
        if self.spatial_dims == 3 and x.shape[0] == 1 and not x.is_cuda:
            out_depth = (x.shape[2] - 1) // self.stride + 1
            if out_depth > 1 and x.shape[1] * x.shape[2] * x.shape[3] <= self.slow_limit:
                return self._in_halves(x, out_depth)
        return self.conv(x)

    def _in_halves(self, x: Tensor, out_depth: int) -> Tensor:
        half = (out_depth + 1) // 2
        length = (half - 1) * self.stride + 3
        start = (out_depth - half) * self.stride
        padded = F.pad(x, [0, 0, 0, 0, 1, 1])
        halves = torch.cat([padded[:, :, :length], padded[:, :, start : start + length]])
        out = F.conv3d(halves, self.conv.weight, self.conv.bias, [self.stride] * 3, [0, 1, 1])
        return torch.cat([out[:1], out[1:, :, 2 * half - out_depth :]], dim=2)


class SeparableConv3(nn.Module):
    """A kernel of 3 for each channel by itself, then a mix of channels a voxel (MobileNets, Howard et al., 2017).

    For c channels about 27 / (1 + 27 / c) times fewer products than `Conv3` in 3D.
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        conv = Conv[Conv.CONV, spatial_dims]
        self.each = conv(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False)
        self.mix = conv(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out_channels, *S)."""
        return self.mix(self.each(x))
