"""VoxelMorph's diffeomorphic network, for comparison, from MONAI's U-Net."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.nets import VoxelMorphUNet
from torch import Tensor, nn

from .convolution import Conv3

__all__ = ["VoxelMorphDiff"]


class VoxelMorphDiff(nn.Module):
    """The U-Net of VoxelMorph with a head for a stationary velocity (Dalca et al., MICCAI 2018).

    As in `samcl`'s networks the velocity is that of half the deformation, and the head starts at zero. Any input size:
    padded inside to a multiple of the coarsest voxel.

    Args:
        spatial_dims: 2 or 3.
        channels: of the U-Net, two a level (MONAI's default).
        final: channels of the convolutions at full resolution.
        input_mean: subtracted from the images before the first convolution.
        input_std: the images are divided by it.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        channels: Sequence[int] = (16, 32, 32, 32, 32, 32),
        final: Sequence[int] = (16, 16),
        input_mean: float = 0.0,
        input_std: float = 1.0,
    ) -> None:
        super().__init__()
        self.spatial_dims, self.input_mean, self.input_std = spatial_dims, input_mean, input_std
        self.factor = 2 ** (len(channels) // 2)
        self.unet = VoxelMorphUNet(spatial_dims, 2, channels[-1], channels, final)
        self.head = Conv3(spatial_dims, final[-1], spatial_dims, bias=False)
        nn.init.zeros_(self.head.conv.weight)

    def settings(self) -> dict[str, Any]:
        """Return the options that decide the output and that the layers do not show."""
        return {name: getattr(self, name) for name in ("input_mean", "input_std")}

    def forward(self, image: Tensor) -> Tensor:
        """Return dvf (B, d, *S) in voxels for ``image`` (B, 2, *S), channel 0 moving, channel 1 fixed."""
        size = image.shape[2:]
        padding = [p for n in reversed(size) for p in (0, -n % self.factor)]
        x = (F.pad(image, padding) - self.input_mean) / self.input_std
        dvf = self.head(self.unet(x))
        return dvf[(..., *[slice(n) for n in size])].to(torch.promote_types(dvf.dtype, torch.float32))
