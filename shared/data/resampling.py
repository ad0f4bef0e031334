"""Putting images on another grid without aliasing."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..transform_io import Grid, affine_ddf
from ..warp import warp

__all__ = ["Placement", "anti_alias", "resample"]

# Voxels: a grid's outer edge is found again through two affines.
EDGE = 1e-3


def anti_alias(image: Tensor, source: Grid, target: Grid) -> Tensor:
    """Blur what the target grid cannot hold, before it is sampled there: (C, *S) to (C, *S)."""
    from scipy.ndimage import gaussian_filter

    step = np.linalg.norm(np.linalg.inv(target.affine)[:-1, :-1] @ source.affine[:-1, :-1], axis=0)
    sigma = np.maximum(0.0, 0.5 * (1 / step - 1))
    if not sigma.any():
        return image
    return torch.from_numpy(gaussian_filter(image.numpy(), (0, *sigma), truncate=3))


class Placement:
    """Where the voxels of a target grid lie in a source grid.

    Unlike a warp that fades to zero around the outer voxel centres, the source reaches to its outer voxel edges: up
    to there its edge is repeated, beyond lies zero.

    Args:
        source: grid of what is placed.
        target: grid of the result.
        device: of what is placed.
    """

    def __init__(self, source: Grid, target: Grid, device: torch.device | str = "cpu") -> None:
        self.field = affine_ddf(target, source).to(device)
        self.inside = torch.ones(1, *target.shape, dtype=torch.bool, device=device)
        for axis, (count, wide) in enumerate(zip(source.shape, target.shape, strict=True)):
            ramp = torch.arange(wide, device=device).view(-1, *[1] * (len(target.shape) - 1 - axis))
            position = self.field[:, axis] + ramp
            self.inside &= (position > -0.5 - EDGE) & (position < count - 0.5 + EDGE)

    def __call__(self, image: Tensor, mode: str = "bilinear") -> Tensor:
        """Return (C, *T) for (C, *S), of the same type; ``mode`` "bilinear" or "nearest"."""
        return warp(image[None], self.field, mode=mode, padding_mode="border")[0] * self.inside


def resample(image: Tensor, source: Grid, target: Grid, mode: str = "bilinear") -> Tensor:
    """Put an image on another grid, through the world; zero where it does not reach.

    Args:
        image: (C, *S) on ``source``.
        source: grid of the image.
        target: grid of the result.
        mode: "bilinear" (blurred first where the target is coarser) or "nearest".

    Returns:
        (C, *T) on ``target``, of the image's type.
    """
    if source.key == target.key:
        return image
    if mode == "bilinear":
        image = anti_alias(image, source, target)
    return Placement(source, target)(image, mode)
