"""What a registration is given, checked and brought into one form."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..transform_io import Grid

__all__ = ["Guides", "PairInput"]


@dataclass(frozen=True, eq=False)
class Guides:
    """What a registration may be given beside the images; anything may be None.

    Attributes:
        fixed_mask: (1, 1, *S), not zero where the fixed image counts.
        moving_mask: (1, 1, *T).
        fixed_label: (1, 1, *S) label map; labels that both maps hold are brought to overlap.
        moving_label: (1, 1, *T).
        fixed_points: (N, d) voxels of the fixed image.
        moving_points: (N, d) voxels of the moving image, line by line the same places.
        start_ddf: (1, d, *S) in fixed voxels, a field to start from (a network's), through the frame both images share.
        start_affine: (d+1, d+1) initial map, takes RAS millimetres of the fixed image to those of the moving image; a
            ``start_ddf`` comes before it.
    """

    fixed_mask: Tensor | None = None
    moving_mask: Tensor | None = None
    fixed_label: Tensor | None = None
    moving_label: Tensor | None = None
    fixed_points: Tensor | None = None
    moving_points: Tensor | None = None
    start_ddf: Tensor | None = None
    start_affine: np.ndarray | None = None


class PairInput:
    """Checked images, lattices and guides.

    Args:
        fixed: (1, 1, *S).
        moving: (1, 1, *T), same device.
        fixed_grid: lattice of the fixed image.
        moving_grid: lattice of the moving image.
        guides: see `Guides`.

    Raises:
        InputError: shapes that do not fit, one guide of two, an empty mask, no label in common.
    """

    def __init__(self, fixed: Tensor, moving: Tensor, fixed_grid: Grid, moving_grid: Grid, guides: Guides) -> None:
        self.grids = {"fixed": fixed_grid, "moving": moving_grid}
        self.guides = guides
        for name, image in (("fixed", fixed), ("moving", moving)):
            self._check_shape(f"{name} image", image, name)
            for role in ("mask", "label"):
                guide = getattr(guides, f"{name}_{role}")
                if guide is not None:
                    self._check_shape(f"{name} {role}", guide, name)
            mask = getattr(guides, f"{name}_mask")
            if mask is not None and not bool((mask > 0).any()):
                raise InputError(f"found an empty {name} mask, expected voxels above zero where the image counts")
        self.labels = self._common_labels()
        self._check_points()
        start, size = guides.start_ddf, (1, len(fixed_grid.shape), *fixed_grid.shape)
        if start is not None and tuple(start.shape) != size:
            raise InputError(f"found a start field of shape {tuple(start.shape)}, expected {size} on the fixed image")
        self._check_affine()

    def _check_shape(self, what: str, volume: Tensor, name: str) -> None:
        shape = self.grids[name].shape
        if tuple(volume.shape) != (1, 1, *shape) or len(shape) not in (2, 3):
            raise InputError(f"found a {what} of shape {tuple(volume.shape)}, expected (1, 1, *{shape}) in 2D or 3D")

    def _common_labels(self) -> list[int]:
        pair = (self.guides.fixed_label, self.guides.moving_label)
        if pair[0] is None or pair[1] is None:
            if pair != (None, None):
                raise InputError("found one label map, expected one for the fixed and one for the moving image")
            return []
        present = [{int(v) for v in torch.unique(label) if v > 0} for label in pair if label is not None]
        common = sorted(present[0] & present[1])
        if not common:
            raise InputError(f"found labels {sorted(present[0])} and {sorted(present[1])}, expected one in both maps")
        return common

    def _check_affine(self) -> None:
        matrix, d = self.guides.start_affine, len(self.grids["fixed"].shape)
        if matrix is None:
            return
        if matrix.shape != (d + 1, d + 1) or not np.isfinite(matrix).all() or not np.linalg.det(matrix[:d, :d]) > 0:
            raise InputError(
                f"found an initial affine {np.array2string(matrix, precision=4)}, expected ({d + 1}, {d + 1}) in RAS "
                "millimetres with a positive determinant"
            )

    def _check_points(self) -> None:
        fixed, moving = self.guides.fixed_points, self.guides.moving_points
        d = len(self.grids["fixed"].shape)
        if fixed is None and moving is None:
            return
        if fixed is None or moving is None or fixed.shape != moving.shape or fixed.shape[1:] != (d,):
            found = [None if p is None else tuple(p.shape) for p in (fixed, moving)]
            raise InputError(f"found landmarks of shapes {found}, expected (N, {d}) for both images")
