"""The segmenter: from adjacent slices, or a 3D patch, to scores of the classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from monai.networks.nets import UNet
from torch import Tensor, nn

__all__ = ["SliceUNet", "image_channels"]


def image_channels(channels: int, slices: int, spatial_dims: int) -> int:
    """Return the channels of a sample's image: slices bring their neighbours along, a 3D patch holds them.

    Args:
        channels: of the images.
        slices: adjacent slices that a 2D network sees at once.
        spatial_dims: of a sample, 2 or 3.
    """
    return channels * (slices if spatial_dims == 2 else 1)


class SliceUNet(nn.Module):
    """MONAI's residual U-Net for slices with their neighbours, or for 3D patches.

    Any input size: padded inside to a multiple of ``2^(len(widths) - 1)``. Norms are those of each image alone, so that
    there is no running statistic of a site to be forgotten. Widths 32-64-128-256-512 in 2D are the paper's size: 6.5
    million parameters. The default has 1.6 million: 7 MB.

    Args:
        spatial_dims: 2 or 3.
        channels: of the images.
        slices: adjacent slices seen at once, in 2D; with 3 spatial dims the patch itself holds the neighbours.
        classes: the background included.
        widths: features of each level, halving the resolution from one to the next.
        residual_units: convolutions of each level beyond the first.
        dropout: probability.

    Raises:
        ValueError: ``spatial_dims`` other than 2 and 3, fewer than two widths or classes, or ``slices`` not odd.
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        channels: int = 1,
        slices: int = 3,
        classes: int = 2,
        widths: Sequence[int] = (16, 32, 64, 128, 256),
        residual_units: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3) or len(widths) < 2 or classes < 2:
            raise ValueError(
                f"found spatial_dims {spatial_dims}, widths {list(widths)}, classes {classes}, expected 2 or 3 dims, "
                "at least two widths and two classes"
            )
        if slices < 1 or slices % 2 == 0:
            raise ValueError(f"found slices {slices}, expected an odd number: a slice and as many on either side")
        self.spatial_dims, self.channels, self.slices, self.classes = spatial_dims, channels, slices, classes
        self.factor = 2 ** (len(widths) - 1)
        self.unet = UNet(
            spatial_dims=spatial_dims,
            in_channels=image_channels(channels, slices, spatial_dims),
            out_channels=classes,
            channels=tuple(widths),
            strides=(2,) * (len(widths) - 1),
            num_res_units=residual_units,
            norm=("instance", {"affine": True}),
            dropout=dropout,
        )

    def _padding(self, size: list[int]) -> list[int]:
        padding: list[int] = []
        tiny = max(size) <= self.factor  # a single voxel on the coarsest level, which a norm of an image cannot take
        for i in range(len(size)):  # the last axis comes first in F.pad
            extra = -size[-1 - i] % self.factor + (self.factor if tiny and i == 0 else 0)
            padding.append(extra // 2)
            padding.append(extra - extra // 2)
        return padding

    def forward(self, image: Tensor) -> Tensor:
        """Return scores (logits).

        Args:
            image: (B, slices * channels, H, W), or (B, channels, H, W, D), intensities in [0, 1].

        Returns:
            (B, classes, *S) of the input's size.
        """
        size = image.shape[2:]
        padding = self._padding(size)
        scores = self.unet(F.pad(image, padding))
        for i in range(self.spatial_dims):
            scores = scores.narrow(-1 - i, padding[2 * i], size[-1 - i])
        return scores
