"""Labels and landmarks as further terms of the optimisation."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from ..smoothing import gaussian_smooth
from ..warp import warp_points
from .forces import Similarity, slopes

__all__ = ["LandmarkPull", "SoftDice"]


class SoftDice(Similarity):
    """One minus the mean soft Dice of the labels, in the weighted region.

    ``2 sum(w p q) / sum(w (p^2 + q^2))`` for each label (Milletari et al., 3DV 2016), as `shared.losses.SoftDiceLoss`;
    labels that neither map holds there count for nothing. Images are label probabilities.
    """

    def __call__(self, ddf: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and its gradient (1, d, *S)."""
        p, weight = self.warped(ddf)
        q = self.fixed
        dims = tuple(range(2, p.ndim))
        total = (weight * (p * p + q * q)).sum(dim=dims, keepdim=True)
        dice = 2.0 * (weight * p * q).sum(dim=dims, keepdim=True) / (total + 1e-5)
        present = (total > 1e-3).to(p.dtype)
        count = present.sum().clamp_min(1.0)
        on_p = -2.0 * weight * (q - dice * p) * (present / (count * (total + 1e-5)))
        gradient = [torch.sum(on_p * slope, dim=1, keepdim=True) for slope in slopes(p)]
        return (present * (1.0 - dice)).sum() / count, torch.cat(gradient, dim=1)


class LandmarkPull:
    """A displacement that moves fixed landmarks towards their moving ones.

    The distance left at each landmark is spread by a Gaussian and averaged where landmarks are close
    (Nadaraya-Watson), so that one landmark far from all others still pulls with its full distance.

    Args:
        fixed_points: (N, d) voxels of the level.
        moving_points: (N, d), where they belong, in voxels of the level too.
        size: of the level.
        sigma: of the Gaussian, in voxels.
        start: (1, d, *T) field that the displacement leads into, in voxels; None where the displacement is all.
        margin: voxels that the lattice of ``start`` has more at the beginning of each axis.
    """

    def __init__(
        self,
        fixed_points: Tensor,
        moving_points: Tensor,
        size: tuple[int, ...],
        sigma: float,
        start: Tensor | None = None,
        margin: Sequence[int] | None = None,
    ) -> None:
        self.fixed, self.moving, self.size, self.sigma = fixed_points[None], moving_points[None], size, sigma
        self._start, self._margin = start, fixed_points.new_tensor(margin or [0] * len(size))
        limits = torch.tensor([n - 1.0 for n in size]).to(fixed_points)
        inside = ((fixed_points >= 0) & (fixed_points <= limits)).all(dim=1)
        low = torch.minimum(fixed_points.clamp_min(0).floor(), (limits - 1).clamp_min(0))
        part = (fixed_points - low).clamp(0, 1)
        self.index, self.share = [], []
        for corner in itertools.product((0, 1), repeat=len(size)):
            at = torch.tensor(corner).to(part)
            voxel = torch.minimum(low + at, limits).long()
            flat = voxel[:, 0]
            for axis in range(1, len(size)):
                flat = flat * size[axis] + voxel[:, axis]
            self.index.append(flat)
            self.share.append((at * part + (1 - at) * (1 - part)).prod(dim=1) * inside)

    def distance(self, ddf: Tensor) -> Tensor:
        """Return the distance left at each landmark, (N, d) in voxels."""
        reached = warp_points(self.fixed, ddf)
        if self._start is not None:
            reached = warp_points(reached + self._margin, self._start) - self._margin
        return (self.moving - reached)[0]

    def nearer(self, ddf: Tensor, than: Tensor) -> bool:
        """Whether the landmarks end nearer to their places, in the mean, than with another displacement."""
        after, before = (torch.linalg.vector_norm(self.distance(field), dim=1).mean() for field in (ddf, than))
        return bool(after < before)

    def __call__(self, ddf: Tensor) -> Tensor:
        """Return the pull (1, d, *S) in voxels."""
        left = self.distance(ddf)
        values = torch.cat([left, torch.ones_like(left[:, :1])], dim=1).T
        splat = values.new_zeros(values.shape[0], ddf[0, 0].numel())
        for index, share in zip(self.index, self.share, strict=True):
            splat.index_add_(1, index, values * share)
        spread = gaussian_smooth(splat.view(1, -1, *self.size), self.sigma)
        # A landmark's own weight at its peak is about (2 pi sigma^2)^(-d/2); far out the pull fades.
        floor = 0.05 * (2 * torch.pi * self.sigma**2) ** (-len(self.size) / 2)
        return spread[:, :-1] / (spread[:, -1:] + floor)
