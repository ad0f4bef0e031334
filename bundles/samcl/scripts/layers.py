"""Convolutions of the LKU-Net: one that avoids a slow path of torch, and the large-kernel block in one pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

__all__ = ["Conv3", "LargeKernelBlock"]


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


class LargeKernelBlock(nn.Module):
    """``PReLU(conv3(x) + conv1(x) + conv5(x) + x)``, as in LKU-Net (Jia et al., MLMI 2022).

    The three kernels and the identity are summed into one 5^d kernel before the convolution: exact, trainable, and
    one pass over the volume instead of three.
    """

    def __init__(self, spatial_dims: int, channels: int) -> None:
        super().__init__()
        conv = Conv[Conv.CONV, spatial_dims]
        self.spatial_dims = spatial_dims
        self.conv3 = conv(channels, channels, 3, padding=1)
        self.conv1 = conv(channels, channels, 1)
        self.conv5 = conv(channels, channels, 5, padding=2)
        self.activation = nn.PReLU()
        identity = torch.eye(channels).reshape(channels, channels, *[1] * spatial_dims)
        self.register_buffer("identity", identity, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the shape of ``x``."""
        b1, b3, b5 = self.conv1.bias, self.conv3.bias, self.conv5.bias
        assert b1 is not None
        assert b3 is not None
        assert b5 is not None  # TorchScript asks: nn.Conv types its bias as optional
        bias = b1 + b3 + b5
        kernel = self.conv5.weight + F.pad(self.conv3.weight, [1] * (2 * self.spatial_dims))
        kernel = kernel + F.pad(self.conv1.weight + self.identity, [2] * (2 * self.spatial_dims))
        if self.spatial_dims == 3:
            return self.activation(F.conv3d(x, kernel, bias, padding=2))
        return self.activation(F.conv2d(x, kernel, bias, padding=2))
