"""What a registration returns."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..fields import compose, invert
from ..transform_io import Grid, affine_ddf
from ..warp import warp
from .align import Alignment, moved
from .lattice import carry

__all__ = ["LevelLog", "OptimiseResult"]


@dataclass(frozen=True)
class LevelLog:
    """One level: voxel length, similarity, loss at the first and last iteration, and why it stopped."""

    spacing_mm: float
    similarity: str
    iterations: int
    first: float
    last: float
    stopped: str

    def __str__(self) -> str:
        return (
            f"{self.spacing_mm:.2g} mm, {self.similarity}: loss {self.first:.4f} -> {self.last:.4f} "
            f"in {self.iterations} iterations ({self.stopped})"
        )


@dataclass(eq=False)
class OptimiseResult:
    """A registration, fixed to moving.

    Attributes:
        ddf: (1, d, *S) on the fixed lattice in fixed voxels: the whole map, alignment included. With ``p`` the world
            point of voxel ``x + ddf(x)``, the moving image at ``p`` belongs to the fixed image at ``x``.
        deformation: (1, d, *L) on ``level_grid`` in its voxels: the map but for the alignment, which follows it.
        level_grid: the finest level, with the fixed image's axes.
        alignment: the initial map.
        fixed_grid: lattice of the fixed image.
        moving_grid: lattice of the moving image.
        fold_percent: share of the fixed voxels where ``ddf`` folds.
        kept_start: True where the optimisation was thrown away because it ended worse than it began.
        stopped: "time limit" where that cut anything short, else why the last level stopped.
        levels: what each did.
        messages: decisions and checks in words, in order.
        seconds: wall time of each part.
    """

    ddf: Tensor
    deformation: Tensor
    level_grid: Grid
    alignment: Alignment
    fixed_grid: Grid
    moving_grid: Grid
    fold_percent: float
    kept_start: bool
    stopped: str
    levels: list[LevelLog]
    messages: list[str]
    seconds: dict[str, float] = field(default_factory=dict)

    @torch.no_grad()
    def inverse(self, tolerance: float = 0.01) -> tuple[Tensor, float]:
        """Return the map back, moving to fixed, and how far a round trip misses.

        Found by fixed-point iteration on the finest level (`shared.fields.invert`); outside the fixed image's field
        of view the deformation counts as its edge.

        Args:
            tolerance: of a round trip, in voxels of the finest level.

        Returns:
            ``inv_ddf`` (1, d, *T) on the moving lattice in moving voxels, and the largest distance in millimetres
            that is left after going forth with its result and back.
        """
        inverse, residual = invert(self.deformation, tolerance=tolerance)
        # A moving voxel, taken into the fixed frame by the alignment, undone, then back as a moving voxel.
        source = moved(self.moving_grid, self.alignment.matrix)
        at_level = affine_ddf(source, self.level_grid).to(inverse.device)
        back = at_level + warp(inverse, at_level, padding_mode="border")
        back = _composed(back, source, self.level_grid, self.moving_grid, np.eye(len(source.shape) + 1))
        return back, float(residual.max()) * max(self.level_grid.spacing_mm)


def whole_map(deformation: Tensor, level: Grid, fixed: Grid, matrix: np.ndarray, start: Tensor | None) -> Tensor:
    """Put ``matrix o start o deformation`` on the fixed lattice, in fixed voxels (1, d, *S)."""
    ddf = carry(deformation, level, fixed)
    if start is not None:
        ddf = compose(start.to(ddf), ddf)
    if np.array_equal(matrix, np.eye(len(matrix))):
        return ddf
    return _composed(ddf, fixed, fixed, fixed, matrix)


def _composed(ddf: Tensor, lattice: Grid, frm: Grid, to: Grid, matrix: np.ndarray) -> Tensor:
    """Return, for voxels x of ``lattice``, voxel of ``to`` at ``matrix @ world(frm voxel x + ddf(x))``, minus x."""
    d = ddf.shape[1]
    mapping = np.linalg.inv(to.affine) @ matrix @ frm.affine
    slope = torch.as_tensor(mapping[:d, :d]).to(ddf)
    turned = torch.einsum("ij,bj...->bi...", slope, ddf)
    # What the mapping does to the voxel indices themselves.
    turned += affine_ddf(Grid(lattice.shape, mapping), Grid(lattice.shape, np.eye(d + 1))).to(ddf)
    return turned
