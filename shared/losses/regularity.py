"""Losses that keep a displacement or velocity field smooth and free of folds."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.loss import _Loss

from ..fields import jacobian_determinant
from ..warp import check_field

__all__ = ["BendingEnergyLoss", "FoldingLoss", "MembraneEnergyLoss"]


class BendingEnergyLoss(_Loss):
    """Mean squared second derivative of a field, after Rueckert et al., TMI 1999, eq. 8.

    Per voxel and component the squares of all second derivatives are added, mixed ones twice (once for
    each order); the value is the mean over batch, components and the voxels at least two from the border.
    Every derivative is a central difference taken twice, ``(u[i+2] - 2 u[i] + u[i-2]) / 4``, as in the
    published SAMCL training. ``monai.losses.BendingEnergyLoss`` is the same up to MONAI 1.5; newer
    releases use ``u[i+1] - 2 u[i] + u[i-1]`` for the unmixed terms, average over one more layer of
    voxels, and give larger values on rough fields. On quadratic fields all agree. A field that
    alternates from voxel to voxel is free here; `MembraneEnergyLoss` sees it.
    """

    def __init__(self) -> None:
        super().__init__(reduction="mean")

    def forward(self, field: Tensor) -> Tensor:
        """Return a scalar for ``field`` of shape (B, d, *S), voxel units, every size at least 5.

        Raises:
            ValueError: when the shape is another one.
        """
        check_field(field, "field")
        if min(field.shape[2:]) < 5:
            raise ValueError(f"field must have at least 5 voxels along every axis, got {tuple(field.shape[2:])}")
        dims = range(2, field.ndim)
        energy = field.new_zeros(())
        for a in dims:
            first = _central(field, a)
            for b in range(a, field.ndim):
                second = _central(first, b)
                for c in dims:
                    taken = int(c == a) + int(c == b)
                    second = second.narrow(c, 2 - taken, field.shape[c] - 4)
                energy = energy + (1.0 if a == b else 2.0) * second.square().mean()
        # The differences above lack their factor of 1/2 each.
        return energy / 16.0


class MembraneEnergyLoss(_Loss):
    """Mean squared first derivative of a field (the diffusion regulariser).

    Per component the squared differences of neighbouring voxels are averaged along each axis and added
    over the axes. Unlike the central differences of ``monai.losses.DiffusionLoss`` these see a field that
    alternates from voxel to voxel; on linear fields the two agree.
    """

    def __init__(self) -> None:
        super().__init__(reduction="mean")

    def forward(self, field: Tensor) -> Tensor:
        """Return a scalar for ``field`` of shape (B, d, *S), voxel units; axes of length 1 add nothing.

        Raises:
            ValueError: when the shape is another one.
        """
        check_field(field, "field")
        energy = field.new_zeros(())
        for dim in range(2, field.ndim):
            if field.shape[dim] > 1:
                energy = energy + field.diff(dim=dim).square().mean()
        return energy


class FoldingLoss(_Loss):
    """Penalise voxels where the warp ``x -> x + ddf(x)`` turns inside out.

    The value is ``mean(relu(margin - det J))`` with ``J = I + d(ddf)/dx``; it is zero, with zero
    gradient, on any field whose determinant stays above ``margin``, so it does not fight honest
    volume change. Idea: selective Jacobian term of Mok & Chung, CVPR 2020.

    Args:
        margin: smallest determinant left unpunished; 0 forbids folds only.
    """

    def __init__(self, margin: float = 0.0) -> None:
        super().__init__(reduction="mean")
        self.margin = margin

    def forward(self, ddf: Tensor) -> Tensor:
        """Return a scalar for ``ddf`` of shape (B, d, *S), voxel units.

        Raises:
            ValueError: when the shape is another one.
        """
        check_field(ddf)
        return F.relu(self.margin - jacobian_determinant(ddf)).mean()


def _central(field: Tensor, dim: int) -> Tensor:
    """Twice the central difference along ``dim``, two voxels shorter."""
    n = field.shape[dim] - 2
    return field.narrow(dim, 2, n) - field.narrow(dim, 0, n)
