"""Putting images on another grid without aliasing."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from ..transform_io import Grid, affine_ddf
from ..warp import warp

__all__ = ["anti_alias", "resample"]


def anti_alias(image: Tensor, source: Grid, target: Grid) -> Tensor:
    """Blur what the target grid cannot hold, before it is sampled there: (C, *S) to (C, *S)."""
    step = np.linalg.norm(np.linalg.inv(target.affine)[:-1, :-1] @ source.affine[:-1, :-1], axis=0)
    sigma = np.maximum(0.0, 0.5 * (1 / step - 1))
    if not sigma.any():
        return image
    return torch.from_numpy(gaussian_filter(image.numpy(), (0, *sigma), truncate=3))


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
    return warp(image[None], affine_ddf(target, source), mode=mode)[0]
