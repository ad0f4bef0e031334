"""A U-Net whose decoder gives features at every scale."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv, Norm
from torch import Tensor, nn

from .convolution import Conv3, SeparableConv3

__all__ = ["FeaturePyramid"]

BACKBONES = ("unet", "mobile")


class _Block(nn.Sequential):
    """Convolution, instance norm, leaky ReLU."""

    def __init__(self, conv: nn.Module, spatial_dims: int, channels: int) -> None:
        norm = Norm[Norm.INSTANCE, spatial_dims](channels, affine=True)
        super().__init__(conv, norm, nn.LeakyReLU(0.2))


class _Up(nn.Module):
    """Features of the next coarser scale, enlarged, joined with the encoder's at this one."""

    def __init__(self, spatial_dims: int, coarse: int, skip: int, out_channels: int, separable: bool) -> None:
        super().__init__()
        conv = SeparableConv3 if separable else Conv3
        self.block = _Block(conv(spatial_dims, coarse + skip, out_channels), spatial_dims, out_channels)
        self.mode = "trilinear" if spatial_dims == 3 else "bilinear"

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        larger = F.interpolate(x, scale_factor=2.0, mode=self.mode, align_corners=False)
        return self.block(torch.cat([larger, skip], dim=1))


class FeaturePyramid(nn.Module):
    """One image in, decoder features at the scales ``finest`` to ``len(widths) - 1`` out (scale s: size / 2^s).

    Voxels of a scale are the centres of 2^d voxels of the next finer one: halving is a convolution with kernel and
    stride 2, doubling is linear, so that no scale is shifted against another.

    Args:
        spatial_dims: 2 or 3.
        widths: channels from the full to the coarsest scale.
        finest: the finest scale that is asked for; finer ones have no decoder.
        backbone: "unet" (convolutions of kernel 3), or "mobile": depthwise-separable ones, for a CPU.

    Raises:
        ValueError: an unknown backbone, or a ``finest`` that is no scale.
    """

    def __init__(self, spatial_dims: int, widths: Sequence[int], finest: int = 0, backbone: str = "unet") -> None:
        super().__init__()
        if backbone not in BACKBONES:
            raise ValueError(f"found backbone {backbone!r}, expected one of {BACKBONES}")
        if not 0 <= finest < len(widths):
            raise ValueError(f"found finest {finest}, expected a scale from 0 to {len(widths) - 1}")
        separable = backbone == "mobile"
        conv, halve = SeparableConv3 if separable else Conv3, Conv[Conv.CONV, spatial_dims]
        self.finest = finest
        self.stem = _Block(Conv3(spatial_dims, 1, widths[0]), spatial_dims, widths[0])
        self.down = nn.ModuleList(
            nn.Sequential(
                _Block(halve(fine, coarse, 2, stride=2), spatial_dims, coarse),
                _Block(conv(spatial_dims, coarse, coarse), spatial_dims, coarse),
            )
            for fine, coarse in pairwise(widths)
        )
        self.up = nn.ModuleList(
            _Up(spatial_dims, widths[s + 1], widths[s], widths[s], separable)
            for s in reversed(range(finest, len(widths) - 1))
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return features from coarse to fine for ``image`` (B, 1, *S), each size divisible by 2^(scales-1)."""
        x = self.stem(image)
        skips = [x]
        for down in self.down:
            x = down(x)
            skips.append(x)
        features = [x]
        level = len(skips) - 2
        for up in self.up:
            x = up(x, skips[level])
            features.append(x)
            level -= 1
        return features
