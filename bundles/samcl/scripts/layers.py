"""The large-kernel block of the LKU-Net, in one pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

__all__ = ["LargeKernelBlock"]


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
