"""The LKU-Net of SAMCL: from a pair of images to a stationary velocity field."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from shared.errors import check_bools
from shared.networks.convolution import Conv3
from shared.networks.layout import in_layout_of, quick_layout

from .layers import LargeKernelBlock

__all__ = ["LKUNet"]


def _pair(dims: int, first: int, middle: int, last: int) -> nn.Sequential:
    return nn.Sequential(Conv3(dims, first, middle), nn.PReLU(), Conv3(dims, middle, last), nn.PReLU())


class _Down(nn.Module):
    """Strided convolution (its output is the skip), then the large-kernel block (its output goes down)."""

    def __init__(self, dims: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.reduce = nn.Sequential(Conv3(dims, in_channels, out_channels, stride=2), nn.PReLU())
        self.large = LargeKernelBlock(dims, out_channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        skip = self.reduce(x)
        return self.large(skip), skip


class _Up(nn.Module):
    def __init__(self, dims: int, channels: int, out_channels: int) -> None:
        super().__init__()
        transposed = Conv[Conv.CONVTRANS, dims]
        self.enlarge = nn.Sequential(transposed(channels, channels, 2, stride=2), nn.PReLU())
        self.convs = _pair(dims, 2 * channels, channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.convs(in_layout_of(skip, torch.cat([self.enlarge(x), skip], dim=1)))


class LKUNet(nn.Module):
    """Large-kernel U-Net that predicts the stationary velocity of half the deformation.

    The variant of SAMCL (Wang, Luo & Zhuang, MICCAI 2024): skips leave before the large-kernel block, the last level
    does not double, and the head starts at zero, so that the untrained network is the identity. Channels 16, depth 4
    in 3D is the paper's network with 8,187,014 parameters. Any input size: padded inside to a multiple of 2^depth.

    Args:
        spatial_dims: 2 or 3.
        channels: width of the stem; level i has ``channels * 2^min(i, depth - 1)``.
        depth: number of halvings.
        half_resolution: predict the velocity at half the input's resolution and resize it (smoother, cheaper).
        input_mean: subtracted from the images before the first convolution.
        input_std: the images are divided by it.
        velocity_scale: factor on the head's output; more than 1 lets a zero head leave zero sooner.

    Raises:
        ValueError: ``spatial_dims`` other than 2 and 3, a depth below 1, or a ``half_resolution`` that is neither True
            nor False.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        channels: int = 16,
        depth: int = 4,
        half_resolution: bool = False,
        input_mean: float = 0.0,
        input_std: float = 1.0,
        velocity_scale: float = 1.0,
    ) -> None:
        super().__init__()
        check_bools(half_resolution=half_resolution)
        if spatial_dims not in (2, 3) or depth < 1:
            raise ValueError(f"found spatial_dims {spatial_dims} and depth {depth}, expected 2 or 3 and at least 1")
        self.spatial_dims, self.depth, self.half_resolution = spatial_dims, depth, half_resolution
        self.factor = 2**depth
        self.input_mean, self.input_std, self.velocity_scale = input_mean, input_std, velocity_scale
        widths = [channels * 2 ** min(i, depth - 1) for i in range(depth + 1)]
        self.stem = _pair(spatial_dims, 2, channels, channels)
        self.down = nn.ModuleList(_Down(spatial_dims, widths[i], widths[i + 1]) for i in range(depth))
        last = 1 if half_resolution else 0
        self.up = nn.ModuleList(
            _Up(spatial_dims, widths[i], max(widths[i] // 2, channels)) for i in reversed(range(last, depth))
        )
        head_channels = channels if depth > last else widths[depth]
        self.head = Conv3(spatial_dims, head_channels, spatial_dims, bias=False)
        self._initialise()

    def settings(self) -> dict[str, float]:
        """Return the options that decide the output and that the layers do not show."""
        names = ("half_resolution", "input_mean", "input_std", "velocity_scale")
        return {name: getattr(self, name) for name in names}

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
                nn.init.kaiming_normal_(module.weight, a=0.25)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.zeros_(self.head.conv.weight)

    def _padding(self, size: list[int]) -> list[int]:
        padding: list[int] = []
        for i in range(len(size)):  # the last axis comes first in F.pad
            extra = -size[-1 - i] % self.factor
            padding.append(extra // 2)
            padding.append(extra - extra // 2)
        return padding

    def forward(self, image: Tensor) -> Tensor:
        """Predict a velocity.

        Args:
            image: (B, 2, *S), channel 0 moving, channel 1 fixed, intensities in [0, 1].

        Returns:
            dvf (B, d, *S) in voxels; the deformation is ``exp(2 dvf)``, see :class:`VelocityInferer`.
        """
        size = image.shape[2:]
        padding = self._padding(size)
        x = quick_layout((F.pad(image, padding) - self.input_mean) / self.input_std)
        x = self.stem(x)
        skips = [x]
        for down in self.down:
            x, skip = down(x)
            skips.append(skip)
        level = self.depth - 1
        for up in self.up:
            x = up(x, skips[level])
            level -= 1
        dvf = self.head(x) * self.velocity_scale
        if self.half_resolution:
            mode = "trilinear" if self.spatial_dims == 3 else "bilinear"
            dvf = 2 * F.interpolate(dvf, scale_factor=2.0, mode=mode, align_corners=False)
        for i in range(self.spatial_dims):
            dvf = dvf.narrow(-1 - i, padding[2 * i], size[-1 - i])
        return dvf
