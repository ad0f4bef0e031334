"""Distance between corresponding landmarks after registration."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.modules.loss import _Loss

from ..warp import warp_points

__all__ = ["LandmarkLoss"]


class LandmarkLoss(_Loss):
    """Distance between fixed landmarks moved by the field and the moving landmarks they belong to.

    Args:
        reduction: over the points of a sample: ``rms``, the root of the mean squared distance, or
            ``mean``, the mean distance. The batch is averaged either way.

    Raises:
        ValueError: when ``reduction`` is another one.
    """

    def __init__(self, reduction: str = "rms") -> None:
        if reduction not in ("rms", "mean"):
            raise ValueError(f"reduction must be 'rms' or 'mean', got {reduction!r}")
        super().__init__(reduction="mean")
        self.over_points = reduction

    def forward(
        self, fixed_points: Tensor, moving_points: Tensor, ddf: Tensor, spacing: Sequence[float] | Tensor | None = None
    ) -> Tensor:
        """Return a scalar, in voxels or in the unit of ``spacing``; 0 without points.

        The field is pull-back on the fixed grid, so it takes fixed points to moving ones. Points that
        already coincide have zero gradient.

        Args:
            fixed_points: (B, N, d) voxel coordinates on the fixed grid.
            moving_points: (B, N, d) voxel coordinates of the same landmarks in the moving image.
            ddf: (B, d, *S) in voxels.
            spacing: length of the moving image's voxels along i, j, k: (d,) or (B, d).

        Raises:
            ValueError: when the shapes do not fit.
        """
        if fixed_points.shape != moving_points.shape:
            raise ValueError(
                f"fixed_points and moving_points must have one shape (B, N, d), "
                f"got {tuple(fixed_points.shape)} and {tuple(moving_points.shape)}"
            )
        difference = warp_points(fixed_points, ddf) - moving_points
        if spacing is not None:
            difference = difference * _per_axis(spacing, difference)
        squared = difference.square().sum(dim=-1)
        count = max(squared.shape[1], 1)
        if self.over_points == "rms":
            return _root(squared.sum(dim=1) / count).mean()
        return (_root(squared).sum(dim=1) / count).mean()


def _per_axis(spacing: Sequence[float] | Tensor, points: Tensor) -> Tensor:
    lengths = torch.as_tensor(spacing, dtype=points.dtype, device=points.device)
    batch, _, d = points.shape
    if lengths.shape not in ((d,), (batch, d)):
        raise ValueError(f"spacing must be ({d},) or ({batch}, {d}) for these points, got {tuple(lengths.shape)}")
    return lengths.view(-1, 1, d)


def _root(x: Tensor) -> Tensor:
    """Square root with a gradient of zero, not infinity, at zero."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0).sqrt(), 0.0)
